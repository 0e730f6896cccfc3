"""Steps that somebody has said are not to be restored: kept beside the files, and told to all who have some of them.

A node keeps what it was told itself and what it hears from the coordinator, so a mark outlives every node but the
last that has anything of the job. In memory they are known at once; the file is replaced as a whole.
"""

from __future__ import annotations

import json

import structlog
import trio

from fuse_tier.checkpoints import Job
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.notes import replace
from fuse_tier.restarts import Mark

log = structlog.get_logger(__name__)


class Marks:
    """Those that one node knows."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._marks: frozenset[Mark] = frozenset()

    def load(self) -> None:
        """Reads what was kept. Blocks."""
        try:
            with open(self._layout.marks, encoding="utf-8") as file:
                self._marks = frozenset(
                    Mark(Job(*one["job"].split("/")), one["run"], int(one["step"]), int(one["epoch"]))
                    for one in json.load(file)
                )
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, OSError) as error:
            log.error("marks.unreadable", path=self._layout.marks, reason=str(error))

    def own(self) -> frozenset[Mark]:
        """All of them."""
        return self._marks

    async def add(self, marks: frozenset[Mark]) -> None:
        """Keeps some more."""
        if marks <= self._marks:
            return
        self._marks |= marks
        await trio.to_thread.run_sync(self._write)

    def _write(self) -> None:
        fields = [{"job": str(one.job), "run": one.run, "step": one.step, "epoch": one.epoch} for one in self._marks]
        replace(self._layout, self._layout.marks, json.dumps(fields))
