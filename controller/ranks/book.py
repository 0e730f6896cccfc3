"""What the ranks server knows, and what it answers: pods and nodes as the API server tells them, ranks as nodes do.

Synchronous, without I/O. It keeps no truth of its own: pods, jobs and nodes come from a watch, and who had which rank
comes from the nodes, each of which keeps its own beside its files. So after a restart of this server the same ranks
come out. The invariants: no two pods that run have one rank of a job; the rank of a pod never changes; and none is
told before all of its job are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from controller.ranks.assignment import Seat, assign
from controller.ranks.objects import Name, Node, Owner, Place, Pod, Reference
from controller.ranks.shape import Shape
from fuse_tier.checkpoints import Job
from fuse_tier.errors import InvalidRequest, NotFound, TierRefused, TierUnavailable
from fuse_tier.members import Domain
from fuse_tier.restarts import Wish

_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of a pod. ``rank`` is the one that it keeps of ``job``; ``is_assigned``: for this very pod."""

    node: str
    pod: str
    is_assigned: bool = False
    job: str = ""
    shape: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """``rank`` is None while it is waited for others; then ``waits_for`` says for whom, in words."""

    job: Name
    shape: Shape
    rank: int | None
    first_address: str = ""  # of the node that has rank 0
    waits_for: str = ""


@dataclass(slots=True)
class _Job:
    """One life of a job: the pods of its newest attempt that run, or are to. All but ``known`` is of those.

    What could be counted each time is kept: ten thousand nodes ask, each of them several times.
    """

    known: int = 0  # pods that there are, of earlier attempts too
    life: tuple[str, int] = ("", -1)  # origin and attempt
    begun: tuple[str, int] = ("", -1)  # the newest pod's time of creation, and its attempt
    shape: Shape | None = None
    pods: dict[str, tuple[Pod, Place]] = field(default_factory=dict)
    kept: dict[str, int | None] = field(default_factory=dict)  # the rank that a pod's node keeps
    silent: dict[str, None] = field(default_factory=dict)  # pods of which no node has said a word
    ranks: dict[str, int] = field(default_factory=dict)
    holders: dict[int, str] = field(default_factory=dict)  # pods, by rank

    def begin(self, life: tuple[str, int], begun: tuple[str, int]) -> None:
        self.life, self.begun, self.pods = life, begun, {}
        self.take_shape(None)

    def take_shape(self, shape: Shape | None) -> None:
        self.shape, self.kept, self.ranks, self.holders = shape, {}, {}, {}
        self.silent = dict.fromkeys(self.pods)

    def add(self, pod: Pod, place: Place) -> None:
        if pod.uid not in self.pods:
            self.silent[pod.uid] = None
        self.pods[pod.uid] = (pod, place)

    def drop(self, uid: str) -> None:
        self.pods.pop(uid, None)
        self.kept.pop(uid, None)
        self.silent.pop(uid, None)
        if (rank := self.ranks.pop(uid, None)) is not None:
            del self.holders[rank]

    def hear(self, uid: str, kept: int | None) -> None:
        self.kept[uid] = kept
        self.silent.pop(uid, None)

    def give(self, ranks: Mapping[str, int]) -> None:
        self.ranks |= ranks
        self.holders |= {rank: uid for uid, rank in ranks.items()}


class RankBook:
    """All jobs of a cluster."""

    def __init__(self) -> None:
        self.restarted: Callable[[Name, Pod], None] = lambda _job, _pod: None  # in its place
        self._pods: dict[str, Pod] = {}
        self._jobs: dict[Name, _Job] = {}
        self._workers: dict[Owner, int] = {}
        self._nodes: dict[str, Node] = {}
        self._wishes: dict[tuple[str, Name], Wish | str] = {}  # by the kind of object, and its name

    # ---- what the API server tells ----

    def see_pod(self, pod: Pod) -> None:
        """A pod is there, or has changed."""
        before = self._pods.get(pod.uid)
        if before is not None and before.place != pod.place:
            self.lose_pod(pod.uid)
            before = None
        self._pods[pod.uid] = pod
        if pod.place is None:
            return
        job = self._jobs.setdefault(pod.place.job, _Job())
        job.known += before is None
        life, begun = (pod.place.origin, pod.place.attempt), (pod.created, pod.place.attempt)
        if life != job.life and begun > job.begun:
            job.begin(life, begun)
        if pod.is_over:
            job.drop(pod.uid)
        elif life == job.life:
            job.begun = max(job.begun, begun)
            job.add(pod, pod.place)
            if before is not None and pod.restarts > before.restarts and len(job.pods) > 1:
                self.restarted(pod.place.job, pod)

    def lose_pod(self, uid: str) -> None:
        """A pod is gone."""
        pod = self._pods.pop(uid, None)
        if pod is None or pod.place is None:
            return
        job = self._jobs[pod.place.job]
        job.drop(uid)
        job.known -= 1
        if not job.known:
            del self._jobs[pod.place.job]

    def see_workers(self, owner: Owner, workers: int | None) -> None:
        """How many workers a Job or a StatefulSet has; None: it is gone, or has no numbers."""
        if workers is None:
            self._workers.pop(owner, None)
        else:
            self._workers[owner] = workers

    def see_wish(self, kind: str, name: Name, wish: Wish | str | None) -> None:
        """What is written on a JobSet, Job or StatefulSet; None: nothing, or it is gone."""
        if wish is None:
            self._wishes.pop((kind, name), None)
        else:
            self._wishes[kind, name] = wish

    def wish_of(self, job: Job) -> Wish | None:
        """What is written on the object whose pods are a job's. Raises InvalidRequest for what cannot be followed."""
        name = Name(job.namespace, job.workload)
        owner = self.origin_of(name)
        wish = self._wishes.get((owner.kind, owner.name)) if owner is not None else None
        if isinstance(wish, str):
            raise InvalidRequest(f"{job}: {wish}")
        return wish

    def see_node(self, name: str, node: Node | None) -> None:
        """A node is there, has changed, or (None) is gone."""
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node

    def domain_of(self, node: str) -> Domain:
        """What a node fails together with, by its labels."""
        known = self._nodes.get(node)
        return Domain(known.zone, known.pool, known.host) if known else Domain()

    def origin_of(self, job: Name) -> Reference | None:
        """The object whose pods are a job's; None: there are none of that name."""
        known = self._jobs.get(job)
        return next((place.made_by for _, place in known.pods.values()), None) if known is not None else None

    # ---- what nodes ask ----

    def update(self, report: Report) -> Answer:
        """Takes in what a node says of a pod, and answers with the pod's rank as soon as all of its job are known.

        Raises TierUnavailable (ask again), InvalidRequest (the pod is on another node), NotFound (of no job with
        ranks), TierRefused (the pod is over, or of an earlier attempt).
        """
        pod, place = self._find(report)
        job = self._jobs[place.job]
        if pod.uid not in job.pods:
            state = "ends" if pod.is_over else f"is of an earlier life of {place.job} (attempt {place.attempt})"
            raise TierRefused(f"pod {pod.name} {state}: it gets no rank any more")
        shape = self._shape(place)
        if job.shape != shape:
            job.take_shape(shape)
        is_kept = report.job == str(place.job) and report.shape == str(shape) and report.rank in shape.ranks
        job.hear(pod.uid, report.rank if is_kept else None)
        if is_kept and report.is_assigned and pod.uid not in job.ranks and report.rank not in job.holders:
            job.give({pod.uid: report.rank})  # it was, before this server was started again
        waits_for = ""
        if pod.uid not in job.ranks and not (waits_for := _missing(shape, job)):
            self._assign(job, shape)
        if pod.uid not in job.ranks:
            return Answer(place.job, shape, None, waits_for=waits_for)
        return Answer(place.job, shape, job.ranks[pod.uid], self._first_address(job))

    def forget(self, report: Report) -> None:
        """The pod has ended, says its node. Raises as ``update`` does, but for TierRefused."""
        pod, place = self._find(report)
        self._jobs[place.job].drop(pod.uid)

    def _find(self, report: Report) -> tuple[Pod, Place]:
        pod = self._pods.get(report.pod)
        if pod is None:
            raise TierUnavailable(
                f"pod {report.pod} on node {report.node} is not known from the API server yet: try again in a "
                "second; if it stays so, the pod was deleted, or has no volume of this driver"
            )
        if pod.node != report.node:
            where = f"on node {pod.node}" if pod.node else "not scheduled yet"
            raise InvalidRequest(f"pod {pod.name} is {where}, says the API server, and not on node {report.node}")
        if pod.place is None:
            raise NotFound(
                f"pod {pod.name} is of no JobSet, Indexed Job or StatefulSet: name `workload` and `replica` in its "
                "volumeAttributes if it is to have more than an identity by its own name"
            )
        return pod, pod.place

    def _shape(self, place: Place) -> Shape:
        workers = self._workers.get(place.owner)
        if workers is None or place.slices < 1 or workers < 1:
            raise TierUnavailable(
                f"how many workers {place.owner} has is not known from the API server yet: try again in a second"
            )
        return Shape(place.slices, workers)

    def _assign(self, job: _Job, shape: Shape) -> None:
        seats = [
            Seat(
                uid,
                pod.node,
                self._nodes[pod.node].pool if pod.node in self._nodes else "",
                place.slice * shape.workers + place.worker,
                job.ranks.get(uid, job.kept[uid]),
            )
            for uid, (pod, place) in job.pods.items()
        ]
        ranks = assign(shape, seats)
        if not job.ranks.items() <= ranks.items():
            # Pods that run have ranks of one slice in two pools: nothing is moved under them.
            free = (rank for rank in shape.ranks if rank not in job.holders)
            ranks = {seat.pod: next(free) for seat in seats if seat.pod not in job.ranks}
        job.give(ranks)

    def _first_address(self, job: _Job) -> str:
        if 0 not in job.holders:
            return ""
        node = self._nodes.get(job.pods[job.holders[0]][0].node)
        return node.address if node is not None else ""


def _missing(shape: Shape, job: _Job) -> str:
    """Whom an assignment waits for, in words; empty: nobody."""
    size = len(shape.ranks)
    if len(job.pods) != size:
        return f"{len(job.pods)} of {size} pods are there"
    if not job.silent:
        return ""
    some = [job.pods[uid][0] for uid in islice(job.silent, _NAMED_AT_MOST)]
    more = len(job.silent) - len(some)
    return ", ".join(map(_silence, some)) + (f" and {more} more" if more else "")


def _silence(pod: Pod) -> str:
    return f"{pod.name} (no word from node {pod.node})" if pod.node else f"{pod.name} (not scheduled)"
