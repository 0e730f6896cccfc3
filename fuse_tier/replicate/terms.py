"""Which coordinator this node listens to: the one of the highest term that it has ever heard of.

It is kept beside the files, before anything is done that such a coordinator says: so a worker that is started again
does not fall for one that was replaced. A term that no clock explains is not kept: after it, this node would listen
to nobody. See ``coordinate/fencing.py``.
"""

from __future__ import annotations

import structlog
import trio

from fuse_tier import epochs
from fuse_tier.errors import TierUnavailable
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.notes import replace

log = structlog.get_logger(__name__)


class Terms:
    """Of one node."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._path = layout.term
        self._keeping = trio.Lock()
        self.highest = 0

    def load(self) -> None:
        """Reads what was kept. Blocks."""
        try:
            with open(self._path, encoding="ascii") as file:
                kept = int(file.read(32))
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            log.error("terms.unreadable", path=self._path, reason=str(error))
            return
        if epochs.is_in_reason(kept):
            self.highest = max(self.highest, kept)
        else:
            log.error(
                "terms.unreadable", path=self._path, reason=f"{kept} is more than ten years ahead of the clock here"
            )

    async def obey(self, term: int, address: str) -> None:
        """Before anything is done that a coordinator has said. Raises TierUnavailable when it was replaced.

        Those of earlier minor versions have no term, and are believed as long as no other was heard of.
        """
        async with self._keeping:  # who is told of an older one meanwhile waits, and then refuses it
            if term < self.highest:
                raise TierUnavailable(
                    f"the coordinator at {address} (term {term}) was replaced by one of term {self.highest}, and is "
                    "not listened to: it ends by itself; if it does not, stop it"
                )
            if term == self.highest:
                return
            if not epochs.is_in_reason(term):
                raise TierUnavailable(
                    f"the coordinator at {address} has a term ({term}) more than ten years ahead of the clock here, "
                    "and is not listened to: set the clock of its machine, or of this one, and start it again"
                )
            await trio.to_thread.run_sync(self._keep, term)
            self.highest = term

    def _keep(self, term: int) -> None:
        try:
            replace(self._layout, self._path, str(term))
        except OSError as error:  # better to go on with it in memory than without a coordinator
            log.error("terms.not_kept", path=self._path, reason=str(error))
