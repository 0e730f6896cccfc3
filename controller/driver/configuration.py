"""A CheckpointConfiguration as the controller understands it. Its schema (``crd/``) has checked what it says.

What the schema fills in is filled in by the API server; an object that was kept from before a field came has none of
it, and gets the default of ``node.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from controller.driver import names
from fuse_tier.errors import ConfigError
from fuse_tier.quantities import parse_duration, parse_size

_MIB: Final = 1 << 20
_DRAIN: Final = "30s"

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Storage:
    """What cannot be changed without losing data: the size of each node's RAM tier, and where backups are."""

    ram: int  # bytes, whole MiB
    bucket: str  # gs://BUCKET/PREFIX
    endpoint: str  # empty: Cloud Storage

    def loses(self, wanted: Storage) -> tuple[str, ...]:
        """What data would be lost were it changed so; a line for each reason."""
        reasons = []
        if wanted.ram < self.ram:
            reasons.append(
                f"inMemoryVolumeSize would shrink from {self.ram // _MIB}Mi to {wanted.ram // _MIB}Mi: "
                "nodes give up checkpoints that do not fit"
            )
        if (wanted.bucket, wanted.endpoint) != (self.bucket, self.endpoint):
            reasons.append(
                f"backups would go to {_place(wanted)} instead of {_place(self)}: what is there is not found any more"
            )
        return tuple(reasons)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One, of one generation."""

    name: str
    uid: str
    generation: int
    created: str  # in the API's way of writing, which sorts
    storage: Storage
    spec: Object
    allowed_loss: str  # the generation whose loss of data is wanted; empty for none
    is_deleted: bool
    finalizers: tuple[str, ...]
    status: Object
    fault: str = ""
    """What of the spec makes no sense though the schema let it through; then ``storage`` is what it was before."""

    @property
    def node_selector(self) -> Mapping[str, str]:
        """Labels of its nodes."""
        return dict(self.spec.get("nodeSelector") or {})

    @property
    def tolerations(self) -> tuple[Object, ...]:
        """Of the driver's pods."""
        return tuple(self.spec.get("tolerations") or ())

    @property
    def drain_seconds(self) -> float:
        """How long the end of a node waits for copies."""
        return parse_duration(self.spec.get("drain", _DRAIN))


def read_configuration(found: Object, before: Configuration | None = None) -> Configuration:
    """From the object; ``before`` is what it was, which a spec that makes no sense does not change."""
    metadata, spec = found["metadata"], found["spec"]
    read = Configuration(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        created=metadata["creationTimestamp"],
        storage=before.storage if before else Storage(0, "", ""),
        spec=spec,
        allowed_loss=(metadata.get("annotations") or {}).get(names.DATA_LOSS_ANNOTATION, ""),
        is_deleted="deletionTimestamp" in metadata,
        finalizers=tuple(metadata.get("finalizers") or ()),
        status=found.get("status") or {},
    )
    try:
        return replace(read, storage=_storage(spec))
    except ConfigError as error:
        return replace(read, fault=str(error), spec=before.spec if before else spec)


def _storage(spec: Object) -> Storage:
    """Raises ConfigError."""
    for name in ("inMemoryVolumeSize", "cloudStorageBucketName"):
        if not spec.get(name):
            raise ConfigError(f"spec.{name} is missing: give it (kubectl explain cpc.spec.{name})")
    try:
        ram = -(-parse_size(spec["inMemoryVolumeSize"]) // _MIB) * _MIB
    except ConfigError as error:
        raise ConfigError(f"spec.inMemoryVolumeSize: {error}") from error
    prefix = spec.get("cloudStoragePrefix") or ""
    bucket = f"gs://{spec['cloudStorageBucketName']}{'/' if prefix else ''}{prefix}"
    return Storage(ram, bucket, spec.get("cloudStorageEndpoint") or "")


def read_storage(daemonset: Object) -> Storage | None:
    """What a daemonset of ours was made with; None when that cannot be told."""
    told = daemonset["metadata"].get("annotations") or {}
    try:
        return Storage(
            int(told[names.RAM_ANNOTATION]), told[names.BUCKET_ANNOTATION], told[names.ENDPOINT_ANNOTATION]
        )
    except (KeyError, ValueError):
        return None


def _place(storage: Storage) -> str:
    return f"{storage.bucket} at {storage.endpoint}" if storage.endpoint else storage.bucket
