"""The parts of a configuration: keys, defaults and meanings. Rules that concern several parts are in config.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fuse_tier.config_fields import (
    AbsolutePath,
    AddressField,
    BucketUrl,
    BulkRate,
    Count,
    EndpointUrl,
    Name,
    NumberOr,
    PositiveSeconds,
    Processors,
    ScrubRate,
    Size,
    SomeCount,
)


class Section(BaseModel):
    """Part of a configuration: its keys are all that there are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RamConfig(Section):
    """The RAM tier of this node."""

    path: AbsolutePath = Field(description="Where it is; a tmpfs is mounted there if there is none.")
    size: Size = Field(description="How much RAM it may take.")
    share: Size | None = Field(
        default=None, description="How much of it one volume may have; without it, as much as there is."
    )
    warm: bool = Field(
        default=False,
        description="Whether its memory is made ready, and kept so at rest; see [memory](memory.md).",
    )
    expected_sizes: dict[str, Size] = Field(
        default={},
        alias="expectedSizes",
        description="How large such files will be, until there is one to go by; see [memory](memory.md).",
    )


class ListenConfig(Section):
    """Where peers reach this node."""

    control: AddressField = Field(description="The control protocol (gRPC).")
    bulk: AddressField = Field(description="Streams of file content.")


class BucketConfig(Section):
    """The bucket tier."""

    url: BucketUrl = Field(description="`gs://BUCKET/PREFIX`; the prefix may be left out.")
    endpoint: EndpointUrl | None = Field(
        default=None, description="An emulator's URL. Without one, Cloud Storage with default credentials."
    )
    credentials: AbsolutePath | None = Field(
        default=None, description="Key file of a service account, in place of the default credentials."
    )

    @property
    def bucket_name(self) -> str:
        """The bucket alone."""
        return self.url.removeprefix("gs://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What all our object names begin with, without a slash at its end; may be empty."""
        return self.url.removeprefix("gs://").partition("/")[2]


class TlsConfig(Section):
    """Who we are to peers, and whom we believe. Needed as soon as an address is not a loopback one."""

    ca: AbsolutePath = Field(description="Certificate of the authority that signed all nodes' certificates.")
    cert: AbsolutePath = Field(
        description="This process's certificate, which [names the node](operations.md#certificates)."
    )
    key: AbsolutePath = Field(description="The key that belongs to it.")


class NodeTlsConfig(TlsConfig):
    """Likewise, of a node."""

    coordinator: Name | None = Field(
        default=None, description="The name in the coordinator's certificate; none: any node could play it."
    )


class KeepBucketConfig(Section):
    """Which complete checkpoints of a job the bucket keeps; a number alone is ``last``."""

    last: SomeCount = Field(default=5, description="In the bucket: so many of the newest.")
    hourly: Count = Field(default=0, description="Besides, the last one of each of so many hours that have one.")
    daily: Count = Field(default=0, description="Likewise of days, in UTC.")
    weekly: Count = Field(default=0, description="Likewise of weeks, which begin on Monday.")
    monthly: Count = Field(default=0, description="Likewise of months.")


class KeepConfig(Section):
    """How many checkpoints are kept."""

    ram: SomeCount = Field(default=2, description="In RAM, of each volume, own and copies held for peers.")
    bucket: NumberOr[KeepBucketConfig] = Field(default=KeepBucketConfig())


class BackupConfig(Section):
    """When the newest checkpoint goes to the bucket: whenever there is one, or less often."""

    every: PositiveSeconds | None = Field(default=None, description="At most so often; without it, always.")
    steps: SomeCount | Literal["odd"] | None = Field(
        default=None,
        description="The first step at or after each multiple of this, or `odd` (each odd one); without it, always.",
    )


class LimitsConfig(Section):
    """How much of the machine the driver takes at most, so that jobs do not feel it."""

    bulk: BulkRate | None = Field(
        default=None, description="File content to and from peers, all streams together, each way."
    )
    bucket: BulkRate | None = Field(
        default=None, description="File content to the bucket; what comes from it is not held back."
    )
    bucket_cpu: Processors | None = Field(
        default=None, alias="bucketCpu", description="How many processors copying to the bucket may keep busy."
    )


class ScrubConfig(Section):
    """The slow reading of everything held in RAM, to find what has changed there by itself."""

    every: PositiveSeconds = Field(default=24 * 3600.0, description="How often all content is read and hashed.")
    limit: ScrubRate = Field(default=200_000_000, description="How fast it is read.")


class DomainConfig(Section):
    """What this node fails together with: copies go elsewhere first."""

    zone: str = Field(default="", description="Such as the cloud's zone.")
    pool: str = Field(default="", description="Such as the node pool or slice.")
    host: str = Field(default="", description="The physical machine.")
