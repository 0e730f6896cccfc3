"""What the chaos test plays with: a cluster in a network of its own, its jobs, and when all is well again."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.localcluster.processes import detach_mounts
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.partials import SMALLEST_KEPT
from tests.chaos.jobs import Job
from tests.harness.checker import broken_in_ram, listed
from tests.harness.network import Network
from tests.harness.waiting import until

REPLICAS = 2
_STANDSTILL_SECONDS = 90.0  # a machine may be as slow as it likes; one that gets nowhere does not converge
_POLL_SECONDS = 0.2
_PARTS_STAY_SECONDS = 30.0
_BEGINNINGS_STAY_SECONDS = 240.0  # they are kept for two minutes, and cleared away some time after


@dataclass(slots=True)
class World:
    """Everything there is."""

    cluster: LocalCluster
    network: Network
    rng: random.Random
    jobs: list[Job]
    sick: set[str] = field(default_factory=set)  # nodes that a fault has just now
    coordinators_turn: trio.Lock = field(default_factory=trio.Lock)  # there is one: it has one fault at a time
    may_lose: int = REPLICAS  # nodes that may lose their RAM before all has to be well again
    leftovers: list[tuple[LocalNode, Path]] = field(default_factory=list)  # mounts that nobody wants any more
    begun: float = field(default_factory=trio.current_time)
    mounts: int = 0
    acknowledged: int = 0
    convergences: list[float] = field(default_factory=list)  # seconds
    faults: Counter[str] = field(default_factory=Counter)
    amid_content: int = 0  # faults that began while a node was receiving a large file
    events: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """For whoever looks into a failure."""
        self.events.append(f"{trio.current_time() - self.begun:7.2f} {text}")

    def healthy(self) -> list[LocalNode]:
        """The nodes that no fault has just now."""
        return [node for node in self.cluster if node.name not in self.sick and node.family.runs]

    async def tidy(self) -> None:
        """Ends the mounts that nobody wants, where their nodes can do so: as a kubelet does that is back."""
        able = [leftover for leftover in self.leftovers if leftover[0].name not in self.sick]
        for leftover in able:
            self.leftovers.remove(leftover)
        for node, mount in able:
            if node.family.runs:
                try:
                    with trio.move_on_after(20):
                        await node.unmount(mount, 0)
                except FuseTierError as error:
                    self.note(f"{mount.name} on {node.name} not unmounted: {error}"[:200])
            detach_mounts(mount)

    async def converge(self) -> None:
        """Waits until what is newest now is where it belongs. Raises TooSlowError when that gets nowhere."""
        begun = moved = trio.current_time()
        await self.tidy()
        wanted = {job.identity: self._newest(job) for job in self.jobs}
        best: dict[str, list[int]] = {}
        while lacking := [job for job in self.jobs if not self._is_kept(job, wanted[job.identity])]:
            self.note(f"lacking: {[(job.identity, wanted[job.identity]) for job in lacking]}")
            reached = {job.identity: self._reached(job, wanted[job.identity]) for job in self.jobs}
            if any(numbers > best.get(identity, []) for identity, numbers in reached.items()):
                best = {identity: max(numbers, best.get(identity, [])) for identity, numbers in reached.items()}
                moved = trio.current_time()
            if trio.current_time() - moved > _STANDSTILL_SECONDS:
                self.note(f"not converged: {self.picture()}")
                raise trio.TooSlowError
            await trio.sleep(_POLL_SECONDS)
            await self.tidy()
        # A volume that nobody has mounted has one copy less, for there is no owner's besides.
        self.may_lose = REPLICAS - any(job.mount is None for job in self.jobs)
        self.convergences.append(trio.current_time() - begun)

    def picture(self) -> dict[str, dict[str, list[int]]]:
        """Which node lists which snapshots."""
        return {
            node.name: {
                job.identity: [one.number for one in listed(_layout(node)) if str(one.identity) == job.identity]
                for job in self.jobs
            }
            for node in self.cluster
        }

    def _newest(self, job: Job) -> int:
        return max((number for node in self.picture().values() for number in node[job.identity]), default=0)

    def _reached(self, job: Job, number: int) -> list[int]:
        """How far the copies of a job have come on the way to a snapshot, the best first."""
        return sorted(
            (min(number, max(node[job.identity], default=0)) for node in self.picture().values()), reverse=True
        )

    def _is_kept(self, job: Job, number: int) -> bool:
        copies = sum(max(node[job.identity], default=0) >= number for node in self.picture().values())
        return copies >= REPLICAS + (job.mount is not None)

    async def until_no_part_of_a_blob_stays(self, *, large: bool = False) -> None:
        """Waits until nothing lies in ``incoming`` that has lain there: jobs go on, and copies with them.

        Of ``large`` ones the beginning is kept for some minutes on purpose (ram/partials.py).
        """
        seen = self._parts(large=large)

        async def are_gone() -> bool:
            return not seen & self._parts(large=large)

        try:
            await until(are_gone, _BEGINNINGS_STAY_SECONDS if large else _PARTS_STAY_SECONDS)
        except trio.TooSlowError:
            self.note(f"parts of blobs stay: {sorted(seen & self._parts(large=large))}")
            raise

    def receives_large_content(self) -> bool:
        """Whether a node has a part of some, or keeps a beginning."""
        return bool(self._parts(large=True))

    def _parts(self, *, large: bool = False) -> set[str]:
        found: set[str] = set()
        for path in (path for node in self.cluster for path in Path(_layout(node).incoming).glob("*")):
            with suppress(FileNotFoundError):
                if (path.stat().st_size >= SMALLEST_KEPT) is large:
                    found.add(str(path))
        return found

    def broken(self) -> list[str]:
        """What is listed anywhere and is not there."""
        return [line for node in self.cluster for line in broken_in_ram(_layout(node), node.name)]


def _layout(node: LocalNode) -> Layout:
    return Layout(str(node.ram_path))
