"""Steps of a job, and the record that says which snapshots of its volumes are one complete checkpoint.

A checkpoint belongs to a job (``Job``: a namespace and a workload), not to one volume: it names a snapshot of
each of its replicas, all of the same step. The record is written after all of these, and never changed; its date
is that of the newest of them, so that whoever writes it writes the same text under the same name. Nothing here
reads or writes files or objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import xxhash

from fuse_tier.errors import ConfigError, MalformedManifest
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.stepnames import newest_step, step_in

FORMAT = 1
MAX_ENCODED_BYTES = 16 << 20  # about 200,000 replicas

_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{2}-[0-9]{2}(?:-[0-9]{2}(?:\.[0-9]{9})?)?")
_compact = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def is_checkpoint_name(text: str) -> bool:
    """Whether ``text`` is a date as checkpoints are named by: ``YYYY-MM-DD_HH-MM``, with seconds where it must be."""
    return _NAME.fullmatch(text) is not None


def step_of(manifest: Manifest) -> int | None:
    """The newest step that a volume's tree holds, by the names at its root; None when no name there is a step's."""
    tops = (entry.path for entry in manifest.entries if entry.path and b"/" not in entry.path)
    return newest_step(tops, manifest.lineage.step_pattern)


def content_of_step(manifest: Manifest, step: int) -> tuple[Entry, ...]:
    """What of a tree belongs to a step: the names at its root that say so, and all below them.

    Below those names, which may change without a save: a job that was given a step calls it by its own name. Where
    there are several their order counts.
    """
    pattern = manifest.lineage.step_pattern
    return tuple(_below_the_root(entry) for entry in manifest.entries if step_in(top(entry.path), pattern) == step)


def top(path: bytes) -> bytes:
    """The name at the root that a path is, or is below."""
    return path.partition(b"/")[0]


def _below_the_root(entry: Entry) -> Entry:
    target = entry.target
    if entry.kind is Kind.HARDLINK and target is not None and top(target) == top(entry.path):
        target = target.partition(b"/")[2]
    return replace(entry, path=entry.path.partition(b"/")[2], target=target)


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """The volumes of one workload: what a checkpoint is one of."""

    namespace: str
    workload: str

    @classmethod
    def of(cls, identity: Identity) -> Job:
        """The job that a volume belongs to."""
        return cls(identity.namespace, identity.workload)

    def identity(self, replica: str) -> Identity:
        """One of its volumes."""
        return Identity(self.namespace, self.workload, replica)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.workload}"


@dataclass(frozen=True, slots=True)
class Saved:
    """What is known of a snapshot without its entries: enough to tell what it is part of."""

    id: SnapshotId
    lineage: Lineage
    step: int | None  # None: no name in the tree says it
    created_ns: int  # UTC, since 1970
    size: int = 0  # bytes of all its files; 0: not known
    older: tuple[int, ...] = ()  # steps below that which can be had from it as well (several.py), ascending

    @classmethod
    def of(cls, manifest: Manifest) -> Saved:
        """What a manifest says."""
        step, older = step_of(manifest), manifest.older_steps
        known = () if step is None else tuple(one for one in older if one < step)
        return cls(manifest.id, manifest.lineage, step, manifest.created_ns, manifest.size, known)

    @property
    def steps(self) -> tuple[int, ...]:
        """All steps that can be had from it, ascending."""
        return self.older if self.step is None else (*self.older, self.step)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint of a job: a snapshot of each replica, by replica, all of one run and step."""

    job: Job
    lineage: Lineage
    step: int | None  # None: of a job with one replica, whose tree names none
    created_ns: int  # when the newest of its snapshots was taken
    snapshots: Mapping[str, int]

    @property
    def ids(self) -> frozenset[SnapshotId]:
        """The snapshots that it is made of."""
        return frozenset(SnapshotId(self.job.identity(replica), number) for replica, number in self.snapshots.items())

    def number_of(self, identity: Identity) -> int | None:
        """The snapshot of one volume that is part of it; None when that volume is none of the job's."""
        return self.snapshots.get(identity.replica) if Job.of(identity) == self.job else None

    @property
    def names(self) -> tuple[str, str, str]:
        """What it may be called: the first of these that no other checkpoint has."""
        seconds, rest = divmod(self.created_ns, 10**9)
        moment = datetime.fromtimestamp(seconds, UTC)
        minute = moment.strftime("%Y-%m-%d_%H-%M")
        second = moment.strftime("%Y-%m-%d_%H-%M-%S")
        return minute, second, f"{second}.{rest:09d}"


def encode(checkpoint: Checkpoint) -> bytes:
    """The record's text: a line of JSON, and a line with its hash."""
    lineage = checkpoint.lineage
    body = (
        _compact(
            {
                "fuse_tier_checkpoint": FORMAT,
                "namespace": checkpoint.job.namespace,
                "workload": checkpoint.job.workload,
                "run": lineage.run,
                "owner_uid": lineage.owner_uid,
                "world_size": lineage.world_size,
                "topology": lineage.topology,
                "step": checkpoint.step,
                "created_ns": checkpoint.created_ns,
                "snapshots": dict(sorted(checkpoint.snapshots.items())),
            }
        )
        + "\n"
    ).encode("ascii")
    return body + (_compact({"xxh3_128": xxhash.xxh3_128_hexdigest(body)}) + "\n").encode("ascii")


def decode(text: bytes) -> Checkpoint:
    """Reads a record from a bucket that may lie. Raises MalformedManifest, and then nothing of it is used."""
    if len(text) > MAX_ENCODED_BYTES:
        raise MalformedManifest(f"the checkpoint's record is {len(text)} bytes long")
    try:
        fields = json.loads(text.partition(b"\n")[0])
        if not isinstance(fields, dict):
            raise MalformedManifest("the checkpoint's record is no object")
        checkpoint = _read(fields)
    except MalformedManifest:
        raise
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedManifest(f"the checkpoint's record cannot be read: {error}") from error
    if encode(checkpoint) != text:
        raise MalformedManifest("the checkpoint's record is damaged, or not in the canonical form")
    return checkpoint


def _read(fields: dict[str, Any]) -> Checkpoint:
    version = _take(fields, "fuse_tier_checkpoint", int)
    if version != FORMAT:
        newer = "written by a newer version" if version > FORMAT else "not known here"
        raise MalformedManifest(f"checkpoint format {version} is {newer}; this version reads format {FORMAT}")
    job = Job(_take(fields, "namespace", str), _take(fields, "workload", str))
    lineage = Lineage(
        run=_take(fields, "run", str),
        owner_uid=_take(fields, "owner_uid", str),
        world_size=_take(fields, "world_size", int),
        topology=_take(fields, "topology", str),
    )
    step = fields.pop("step")
    if step is not None and (type(step) is not int or step < 0):
        raise MalformedManifest(f"{step!r} is no step")
    created_ns = _take(fields, "created_ns", int)
    if not 0 <= created_ns < 1 << 63:
        raise MalformedManifest("the time is out of range")
    snapshots = _take(fields, "snapshots", dict)
    if not snapshots:
        raise MalformedManifest("it names no snapshot")
    for replica, number in snapshots.items():
        if not is_name(replica) or type(number) is not int:
            raise MalformedManifest(f"{replica!r}: {number!r} is no snapshot")
        SnapshotId(job.identity(replica), number)
    return Checkpoint(job, lineage, step, created_ns, snapshots)


def _take(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.pop(name)
    if type(value) is not kind:  # a bool is an int to isinstance
        raise MalformedManifest(f"{name!r} must be of type {kind.__name__}")
    return value
