"""The seam between those who decide what is where and the places that keep it.

The storage contract, for every implementation (``tests/tiers/contract.py`` checks each line of it):

* A manifest is listed only after all its blobs are there, and at once, whole.
* What is listed can be produced, until it is dropped; dropping takes it from the list first.
* ``store`` and ``commit`` may be repeated, after any failure, with the same outcome.
* Two different manifests of one number cannot both be there: the second is refused with SnapshotConflict.
* ``fetch`` hands out nothing that is not what its name says.
* Errors: TierUnavailable may pass by itself; TierRefused needs somebody; TierFull needs room; Damaged and
  NotFound need another source. Nothing else is raised for what the other side does.
* Every method may be cancelled at any checkpoint and then leaves only garbage, which ``collect`` removes.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fuse_tier.blobs import Blob, Progress, Sink, Source
from fuse_tier.errors import TierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.verified import VerifyReport


class TierName(enum.StrEnum):
    """Nearest first."""

    RAM = "ram"
    PEER = "peer"
    BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of a fetch: nothing is in neither."""

    arrived: frozenset[Blob] = frozenset()
    failed: dict[Blob, TierError] = field(default_factory=dict)


def no_progress(moved: int) -> None:
    """For callers that show none."""


class Tier(Protocol):
    """A place that keeps blobs and manifests. A manifest is visible only after its blobs, and at once."""

    @property
    def name(self) -> TierName:
        """Which kind of place this is."""
        ...

    @property
    def place(self) -> str:
        """What a person calls it: ``ram of a``, ``peer b (10.0.0.2:7460)``, ``gs://bucket/prefix``."""
        ...

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """Which of these are not here yet."""
        ...

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        """Puts blobs here; returns when each has been verified by the receiver. Those already here cost nothing."""
        ...

    async def commit(self, manifest: Manifest) -> None:
        """Makes a snapshot visible. Raises IncompleteSnapshot, SnapshotConflict."""
        ...

    async def snapshots(self, identity: Identity | None = None) -> Sequence[SnapshotId]:
        """Everything listed, of one volume or of all, in order."""
        ...

    async def manifest(self, snapshot: SnapshotId) -> Manifest:
        """Raises NotFound, MalformedManifest."""
        ...

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        """Brings as many as possible into the sink, verified. Raises only when nothing can be said of any."""
        ...

    async def drop(self, snapshot: SnapshotId) -> None:
        """Takes a snapshot from the list. One that is not there is no error."""
        ...

    async def collect(self, grace_seconds: float) -> int:
        """Removes blobs that no manifest names and that are older than the grace; gives the bytes freed."""
        ...

    async def verify(self, identity: Identity | None = None) -> VerifyReport:
        """Reads and hashes everything listed, of one volume or of all. Damage is reported, never raised."""
        ...
