"""What a node and a coordinator are told: the models of their configuration files, and reading these.

With config_sections.py the only place that knows the keys, their defaults and their rules; ``docs/configuration.md``
follows it. A configuration that was made is valid as a whole, and nothing was touched to make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fuse_tier.config_errors import problems_of
from fuse_tier.config_fields import (
    AbsolutePath,
    Address,
    Addresses,
    AddressField,
    AlwaysOr,
    AnySize,
    Count,
    Name,
    Passthrough,
    PositiveSeconds,
    Seconds,
    SocketPath,
)
from fuse_tier.config_sections import (
    BackupConfig,
    BucketConfig,
    DomainConfig,
    KeepBucketConfig,
    KeepConfig,
    LimitsConfig,
    ListenConfig,
    NodeTlsConfig,
    RamConfig,
    ScrubConfig,
    Section,
    TlsConfig,
)
from fuse_tier.deadlines import Deadline
from fuse_tier.yamlfile import Document, read

__all__ = [
    "Address",
    "BackupConfig",
    "BucketConfig",
    "CoordinatorConfig",
    "DomainConfig",
    "KeepBucketConfig",
    "KeepConfig",
    "LimitsConfig",
    "ListenConfig",
    "NodeConfig",
    "RamConfig",
    "ScrubConfig",
    "TlsConfig",
    "coordinator_config",
    "load_coordinator_config",
    "load_node_config",
    "node_config",
]


class NodeConfig(Section):
    """Everything one node is told (``node.yaml``)."""

    node: Name = Field(description="This node's name; no two nodes of a cluster have the same.")
    cluster: Name = Field(default="default", description="Nodes of another cluster are refused.")
    ram: RamConfig
    socket: SocketPath = Field(description="The unix socket for commands, its owner's alone.")
    listen: ListenConfig
    metrics: AddressField | None = Field(default=None, description="Where Prometheus reads; without it nowhere.")
    replication_api: AddressField | None = Field(
        default=None,
        alias="replicationApi",
        description="A loopback address at which tools of the system before call `replication.ReplicationService`.",
    )
    coordinator: AddressField | None = Field(default=None, description="Who knows all nodes and what they hold.")
    peers: Addresses = Field(
        default=(), description="The other nodes' control addresses, where there is no coordinator."
    )
    replicas: Count = Field(default=1, description="Copies in peers' RAM besides our own.")
    reserve: AnySize = Field(
        default=0, description="Room of the RAM tier that is kept for peers' copies; see [memory](memory.md)."
    )
    bucket: BucketConfig | None = Field(default=None)
    tls: NodeTlsConfig | None = Field(default=None)
    encrypt_peer_traffic: bool = Field(
        default=True,
        alias="encryptPeerTraffic",
        description="Whether file content travels encrypted between peers. Matters only with `tls`.",
    )
    fsync: Literal["ram", "peer", "bucket"] = Field(
        default="ram", description="What an fsync waits for: `ram`, `peer` or `bucket`."
    )
    passthrough: Passthrough = Field(
        default="auto",
        description="Whether the kernel reads and writes file content by itself: where it can, always (a mount "
        "fails without), or never.",
    )
    keep: KeepConfig = Field(default=KeepConfig())
    backup: AlwaysOr[BackupConfig] = Field(default=BackupConfig())
    limits: LimitsConfig = Field(default=LimitsConfig())
    scrub: ScrubConfig = Field(default=ScrubConfig())
    drain: Seconds = Field(default=30.0, description="How long an unmount or a stop waits for copies to be made.")
    preemption: AbsolutePath | None = Field(
        default=None, description="A file that appears when this node is about to be taken away: all is copied then."
    )
    restore_at_once: AnySize = Field(
        default=64 << 20,
        alias="restoreAtOnce",
        description="A restore that has more to fetch is mounted before: its content comes behind, or when opened.",
    )
    settle: Seconds = Field(default=0.2, description="How long a volume is quiet before a snapshot is taken.")
    domain: DomainConfig = Field(default=DomainConfig())

    @model_validator(mode="after")
    def _check_rules(self) -> NodeConfig:
        reach = {"listen.control": self.listen.control, "listen.bulk": self.listen.bulk}
        if self.coordinator:
            reach["coordinator"] = self.coordinator
        reach |= {f"peers[{index}]": peer for index, peer in enumerate(self.peers)}
        _refuse([*_exposed(reach, self.tls), *self._contradictions()])
        return self

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.coordinator and self.peers:
            yield "peers", "the coordinator knows the peers: give one of the two"
        own = {"listen.control": self.listen.control, "listen.bulk": self.listen.bulk, "metrics": self.metrics}
        own |= {"replicationApi": self.replication_api}
        if self.replication_api and not self.replication_api.is_loopback:
            yield "replicationApi", f"{self.replication_api} is reached over a network, by anybody: use 127.0.0.1"
        taken: dict[Address, str] = {}
        for key, address in own.items():
            if address and (other := taken.setdefault(address, key)) != key:
                yield key, f"{address} is taken by {other}: choose another port"
        for index, peer in enumerate(self.peers):
            if peer == self.listen.control:
                yield f"peers[{index}]", f"{peer} is this node itself: name the others"
        if self.reserve >= self.ram.size:
            yield "reserve", "it leaves nothing of ram.size for this node's own volumes: give less"
        if self.backup.every is not None and self.backup.steps is not None:
            yield "backup.steps", "'every' says when already: give one of the two"
        if self.fsync == "peer" and not (self.replicas and (self.coordinator or self.peers)):
            yield "fsync", "'peer' would wait for ever: it needs replicas, and a coordinator or peers"
        if self.fsync == "bucket" and not self.bucket:
            yield "fsync", "'bucket' would wait for ever: it needs a bucket"


class CoordinatorConfig(Section):
    """Everything a coordinator is told (``coordinator.yaml``)."""

    listen: AddressField = Field(description="Where nodes reach it.")
    cluster: Name = Field(default="default", description="Nodes of another cluster are refused.")
    metrics: AddressField | None = Field(default=None, description="Where Prometheus reads; without it nowhere.")
    tls: TlsConfig | None = Field(default=None)
    lease: PositiveSeconds = Field(
        default=5.0,
        description="A node not heard of for so long counts as gone; with more than 1,000, 5 ms for each.",
    )

    @model_validator(mode="after")
    def _check_rules(self) -> CoordinatorConfig:
        _refuse([*_exposed({"listen": self.listen}, self.tls), *_too_long(self.lease)])
        return self


def _too_long(lease: float) -> Iterator[tuple[str, str]]:
    if lease > Deadline.LEASE:
        yield (
            "lease",
            f"{lease:g} s is too long: {Deadline.LEASE:g} s at most, for a coordinator that starts waits no longer "
            "for nodes that hold one",
        )


def _exposed(addresses: Mapping[str, Address], tls: TlsConfig | None) -> Iterator[tuple[str, str]]:
    for key, address in addresses.items():
        if tls is None and not address.is_loopback:
            yield key, f"{address} is reached over a network: give tls (ca, cert, key), or use 127.0.0.1"


def _refuse(broken: list[tuple[str, str]]) -> None:
    if broken:
        text = "; ".join(f"{key}: {message}" for key, message in broken)
        raise PydanticCustomError("rules", "{text}", {"text": text, "broken": broken})


Config = TypeVar("Config", bound=Section)


def load_node_config(path: str | Path) -> NodeConfig:
    """Reads ``node.yaml``. Raises ConfigError: a line for each mistake, with file, line, key and what is expected."""
    return _load(NodeConfig, Path(path))


def load_coordinator_config(path: str | Path) -> CoordinatorConfig:
    """Reads ``coordinator.yaml``. Raises ConfigError, as ``load_node_config`` does."""
    return _load(CoordinatorConfig, Path(path))


def node_config(values: Mapping[str, Any], directory: str | Path | None = None) -> NodeConfig:
    """From the keys and values of a ``node.yaml``, for programs.

    ``directory`` is what relative paths count from; without one they are refused. Raises ConfigError.
    """
    return _validated(NodeConfig, Document("node configuration", dict(values)), directory)


def coordinator_config(values: Mapping[str, Any], directory: str | Path | None = None) -> CoordinatorConfig:
    """From the keys and values of a ``coordinator.yaml``, as ``node_config`` does."""
    return _validated(CoordinatorConfig, Document("coordinator configuration", dict(values)), directory)


def _load(model: type[Config], path: Path) -> Config:
    return _validated(model, read(path), path.absolute().parent)


def _validated(model: type[Config], document: Document, directory: str | Path | None) -> Config:
    context = {"directory": None if directory is None else str(Path(directory).absolute())}
    try:
        return model.model_validate(document.value, context=context)
    except ValidationError as error:
        raise document.error(problems_of(error, model, document)) from None
