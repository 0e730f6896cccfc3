"""Who takes part in a cluster, and who has what: the values that nodes and the coordinator exchange.

Values only: how they travel is ``wire/members.py``, what is concluded from them is ``coordinate/directory.py``
and ``replicate/placement.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fuse_tier.checkpoints import Saved
from fuse_tier.identity import Identity
from fuse_tier.restarts import Mark, Resumption
from fuse_tier.standing import Standing

Holdings = Mapping[Identity, tuple[int, ...]]
"""Numbers of the snapshots that are listed in a place, ascending, by volume."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What a node fails together with. An empty name says that nothing is known, and equals no other."""

    zone: str = ""
    pool: str = ""
    host: str = ""

    def or_else(self, other: Domain) -> Domain:
        """With what another one says where this one says nothing."""
        return Domain(self.zone or other.zone, self.pool or other.pool, self.host or other.host)


@dataclass(frozen=True, slots=True)
class Member:
    """One node, as last heard of."""

    node: str  # its name, unique in the cluster
    instance: str  # random, new at each start of its worker
    control: str  # HOST:PORT
    bulk: str  # HOST:PORT
    alive: bool  # whether it was heard of within its lease
    capacity_bytes: int = 0  # of its RAM tier
    free_bytes: int = 0
    domain: Domain = Domain()
    mounted: frozenset[Identity] = frozenset()

    @property
    def stays(self) -> bool:
        """Whether it is there, and will be: one that is about to be taken away says that it has no room at all."""
        return self.alive and self.capacity_bytes > 0


@dataclass(frozen=True, slots=True)
class JobAddress:
    """Where a training job's own coordinator is, as a node was told: of several the last that was registered counts.

    ``registered`` is when, in nanoseconds since 1970, or one above what was known then: clocks differ. 0: not said.
    """

    LATEST: ClassVar[int] = (1 << 63) - 1

    address: str
    registered: int = 0

    def after(self, known: JobAddress | None) -> JobAddress:
        """The same, so that it counts where another is known. At the end of time the last counts that is heard."""
        if known is None or known.registered < self.registered:
            return self
        return JobAddress(self.address, min(known.registered + 1, self.LATEST))


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What a node says of itself besides its name and addresses."""

    capacity_bytes: int
    free_bytes: int
    mounted: frozenset[Identity] = frozenset()
    holdings: Holdings = field(default_factory=dict)  # everything listed in its RAM tier, replicas included
    bucket: Holdings = field(default_factory=dict)  # what it has itself committed to the bucket
    epochs: Mapping[Identity, int] = field(default_factory=dict)  # of what is mounted: see ``epochs.py``
    users: Mapping[Identity, str] = field(default_factory=dict)  # who has what is mounted, for people
    # Of jobs of several ranks: what holdings are part of, from what volumes went on, what must not be restored.
    saved: Mapping[Identity, tuple[Saved, ...]] = field(default_factory=dict)
    resumed: Mapping[Identity, Resumption] = field(default_factory=dict)
    marks: frozenset[Mark] = frozenset()
    standings: tuple[Standing, ...] = ()  # of the steward: what is complete in the bucket
    failing: Mapping[Identity, str] = field(default_factory=dict)  # whose last backup failed, and why
    job_addresses: Mapping[str, JobAddress] = field(default_factory=dict)  # of training jobs' own coordinators


@dataclass(frozen=True, slots=True)
class Report:
    """What a node tells the coordinator. On the way it may be told as a change of the one before."""

    node: str
    instance: str
    sequence: int  # grows with each call of this instance
    control: str
    bulk: str
    facts: LocalFacts
    domain: Domain = Domain()
    clock: int = 0  # the highest epoch that it has heard of
    leaving: bool = False  # its last one: nothing is mounted there any more, and its lease ends now
    lease_seconds: float = 0.0  # as long as it was told that its lease is; 0: nobody has told it


@dataclass(frozen=True, slots=True)
class Location:
    """Where a volume's snapshots are, as far as is known: ask the place itself before relying on it."""

    holders: tuple[tuple[Member, tuple[int, ...]], ...] = ()  # those alive first, most recent snapshot first
    bucket: tuple[int, ...] = ()  # ascending; the bucket may hold more than anybody remembers
    copied: int = (
        0  # the newest that a node was heard to have that had not mounted the volume: it was copied to there
    )
    is_settled: bool = True  # False: who told this has just started, and may not have heard of all that nodes hold
    silent: tuple[str, ...] = ()  # who could not be asked, and may list anything
    owners: Mapping[int, str] = field(default_factory=dict)  # nodes, by the last epochs that are remembered


@dataclass(frozen=True, slots=True)
class VolumePicture:
    """One volume, for people: where it is mounted ('' if nowhere) and where its snapshots are."""

    identity: Identity
    mounted_on: str
    location: Location


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything a coordinator knows at one moment."""

    epoch: str
    members: tuple[Member, ...]
    volumes: tuple[VolumePicture, ...]
