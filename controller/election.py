"""Which of several replicas acts: the one that holds a Lease of the API server's.

As client-go's elections do: who holds it renews it every ``retry`` seconds, and stops acting when that has not worked
for ``renew_deadline``; who does not takes it when it has not changed for as long as it says that it lasts, by one's
own clock: clocks of machines are never compared.

Each that is elected has a term, above those of all before it: the lease keeps the last one. So whoever hears of two
can tell which is the newer, whatever the older believes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
import trio

from controller.writing import Clash, Gone, Writer
from fuse_tier import epochs
from fuse_tier.errors import FuseTierError, TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

TERM_ANNOTATION = "checkpointing.gke.io/term"

Object = Mapping[str, Any]


class LeadershipLost(FuseTierError):
    """The lease could not be renewed in time: somebody else may act by now. Start the process again."""


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds."""

    lease: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 5.0


class Election:
    """For the lease at ``namespace``/``name``, as ``identity``, which no other replica has."""

    def __init__(self, writer: Writer, namespace: str, name: str, identity: str, times: Times) -> None:
        self._writer = writer
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._name = name
        self._identity = identity
        self._times = times
        self._seen: tuple[str, float] = ("", 0.0)  # its newest version, and since when, by our clock
        self._held_until = float("-inf")
        self.term = 0  # of this one, once it was elected

    def holds(self) -> bool:
        """Whether nobody else can have been elected by now, whatever has become of this process meanwhile."""
        return trio.current_time() < self._held_until

    async def lead(self, act: Callable[[], Awaitable[None]], waits: Callable[[], object] = lambda: None) -> None:
        """Waits for the lease, and acts while it has it; gives it back when cancelled. Raises LeadershipLost.

        ``waits`` is called when it is seen that another one has it.
        """
        trouble = ""
        while True:
            try:
                if await self._take():
                    break
                trouble = ""
                waits()
            except (TierUnavailable, TierRefused) as error:
                if type(error).__name__ != trouble and not isinstance(error, Clash):
                    trouble = type(error).__name__
                    log.warning("election.failed", lease=self._name, reason=str(error), remedy="it is tried again")
            await trio.sleep(self._times.retry)
        log.info("election.won", lease=self._name, identity=self._identity)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew)
                await act()
                nursery.cancel_scope.cancel()
        finally:
            self._held_until = float("-inf")
            with trio.move_on_after(self._times.retry, shield=True):
                await self._give_back()

    async def _renew(self) -> None:
        renewed = trio.current_time()
        while True:
            await trio.sleep(self._times.retry)
            try:
                with trio.fail_at(renewed + self._times.renew_deadline):
                    if not await self._take():
                        raise LeadershipLost(f"lease {self._name}: another replica has taken it")
                renewed = trio.current_time()
            except trio.TooSlowError as error:
                raise self._lost() from error
            except (TierUnavailable, TierRefused) as error:
                log.info("election.not_renewed", lease=self._name, reason=str(error))
                if trio.current_time() + self._times.retry > renewed + self._times.renew_deadline:
                    raise self._lost() from error

    def _lost(self) -> LeadershipLost:
        return LeadershipLost(f"lease {self._name}: it was not renewed for {self._times.renew_deadline:g} s")

    async def _take(self) -> bool:
        """Whether we have it, now. One call or two."""
        begun = trio.current_time()
        term = await self._hold()
        if term:
            self.term, self._held_until = term, begun + self._times.lease
        return bool(term)

    async def _hold(self) -> int:
        """Our term; 0: another one has it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._times.lease),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        try:
            found = await self._writer.read(self._path)
        except Gone:
            term = self.term or epochs.from_the_time()
            metadata = {"name": self._name, "annotations": {TERM_ANNOTATION: str(term)}}
            await self._writer.create(self._collection, {"metadata": metadata, "spec": spec})
            return term
        told = found.get("spec") or {}
        holder = told.get("holderIdentity") or ""
        term = self.term
        if holder == self._identity and term:
            spec |= {key: told.get(key, spec[key]) for key in ("acquireTime", "leaseTransitions")}
        elif holder not in ("", self._identity) and not self._has_run_out(found):
            return 0
        else:
            spec["leaseTransitions"] = (told.get("leaseTransitions") or 0) + 1
            term = max(epochs.from_the_time(), _last_term(found) + 1, term)
        annotations = {**(found["metadata"].get("annotations") or {}), TERM_ANNOTATION: str(term)}
        metadata = {**found["metadata"], "annotations": annotations}
        await self._writer.replace(self._path, {**found, "metadata": metadata, "spec": spec})
        return term

    def _has_run_out(self, found: Object) -> bool:
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, trio.current_time())
        lasts = found["spec"].get("leaseDurationSeconds") or self._times.lease
        return trio.current_time() - self._seen[1] > float(lasts)

    async def _give_back(self) -> None:
        try:
            found = await self._writer.read(self._path)
            if found["spec"].get("holderIdentity") == self._identity:
                released = {**found["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._writer.replace(self._path, {**found, "spec": released})
        except (TierUnavailable, TierRefused) as error:
            log.info("election.not_given_back", lease=self._name, reason=str(error))


def _last_term(lease: Object) -> int:
    """What the Lease remembers, unless it is out of all reason: nodes would listen to nobody above it."""
    told = (lease["metadata"].get("annotations") or {}).get(TERM_ANNOTATION, "")
    term = int(told) if told.isascii() and told.isdecimal() and len(told) < 16 else 0
    return term if epochs.is_in_reason(term) else 0
