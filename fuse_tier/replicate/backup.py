"""When a volume's newest snapshot goes to the bucket.

Pure decisions. A job's volumes must choose the same steps, or none would ever be complete: by the step's number
that follows by itself, by the clock one node says which step it is (``Turns``), because clocks and saves of several
nodes never fall together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fuse_tier.checkpoints import Job, content_of_step, step_of
from fuse_tier.manifest import Manifest

NOW = 0.0
WHEN_THERE_IS_MORE = math.inf


@dataclass(frozen=True, slots=True)
class BackupPolicy:
    """At most one of ``every`` and ``steps`` is given; none means always."""

    every: float | None = None  # seconds
    steps: int | Literal["odd"] | None = None
    on_demand: bool = False  # a partner's copy of the same state goes there: this one only when somebody asks for it

    @property
    def is_always(self) -> bool:
        """Whether every new state is to be there as soon as it can be."""
        return self.every is None and self.steps is None


def seconds_until_due(
    policy: BackupPolicy, newest: Manifest, last: Manifest | None, since_last: float, demanded: int = 0
) -> float:
    """How long the newest snapshot waits: NOW, seconds, or WHEN_THERE_IS_MORE for a later one only.

    ``last`` is what this node last brought there, ``since_last`` seconds ago; None when it does not know.
    ``demanded`` is the number of a snapshot that somebody waits for. A save that went on after it was backed up is
    backed up again. A volume whose tree names no steps cannot count them, and is backed up always.
    """
    if last is not None and newest.id.number <= last.id.number:
        return WHEN_THERE_IS_MORE
    step = step_of(newest)
    is_demanded = (last.id.number if last else 0) < demanded
    if policy.on_demand and not is_demanded:
        return WHEN_THERE_IS_MORE
    if policy.steps == "odd" and step is not None and step % 2 == 0 and not is_demanded:
        return WHEN_THERE_IS_MORE
    if policy.is_always or last is None or is_demanded:
        return NOW
    if newest.lineage.run != last.lineage.run:
        return NOW
    before = step_of(last)
    if step is not None and step == before:
        same = content_of_step(newest, step) == content_of_step(last, step)
        return WHEN_THERE_IS_MORE if same else NOW
    if policy.every is not None:
        return max(NOW, policy.every - since_last)
    if not isinstance(policy.steps, int) or step is None or before is None or step < before:
        return NOW
    return NOW if step // policy.steps > before // policy.steps else WHEN_THERE_IS_MORE


@dataclass(frozen=True, slots=True)
class Turn:
    """What a volume is told that has saved a step: the step to back up now, or how long until there will be one."""

    step: int | None
    wait_seconds: float = NOW


class Turns:
    """Which step of each job is backed up: the first that was saved after the time was over, by whichever volume.

    Kept by one node; one that begins anew lets the next step have its turn. Time comes in as monotonic seconds.
    """

    def __init__(self) -> None:
        self._ordered: dict[tuple[Job, str], tuple[int, float]] = {}

    def ask(self, job: Job, run: str, step: int, every: float, now: float) -> Turn:
        """For a volume whose newest step this is."""
        ordered = self._ordered.get((job, run))
        if ordered is not None:
            ordered_step, since = ordered
            if now - since < every:
                # One that lags behind will come to it; one that is ahead may have it still.
                return Turn(ordered_step if step >= ordered_step else None, every - (now - since))
            if step == ordered_step:
                return Turn(step)
        self._ordered[job, run] = (step, now)
        return Turn(step, every)
