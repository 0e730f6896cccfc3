"""Which coordinator this node listens to: the one of the highest term that it has ever heard of.

It is kept beside the files, before anything is done that such a coordinator says: so a worker that is started again
does not fall for one that was replaced. See ``coordinate/fencing.py``.
"""

from __future__ import annotations

import os
import secrets

import structlog
import trio

from fuse_tier.errors import TierUnavailable
from fuse_tier.ram.layout import Layout

log = structlog.get_logger(__name__)


class Terms:
    """Of one node."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.term
        self.highest = 0

    def load(self) -> None:
        """Reads what was kept. Blocks."""
        try:
            with open(self._path, encoding="ascii") as file:
                self.highest = max(self.highest, int(file.read(32)))
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            log.error("terms.unreadable", path=self._path, reason=str(error))

    async def obey(self, term: int, address: str) -> None:
        """Before anything is done that a coordinator has said. Raises TierUnavailable when it was replaced.

        Those of earlier minor versions have no term, and are believed as long as no other was heard of.
        """
        if term < self.highest:
            raise TierUnavailable(
                f"the coordinator at {address} (term {term}) was replaced by one of term {self.highest}, and is not "
                "listened to: it ends by itself; if it does not, stop it"
            )
        if term > self.highest:
            await trio.to_thread.run_sync(self._keep, term)
            self.highest = max(term, self.highest)

    def _keep(self, term: int) -> None:
        temporary = f"{self._path}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "x", encoding="ascii") as file:
                file.write(str(term))
            os.rename(temporary, self._path)
        except OSError as error:  # better to go on with it in memory than without a coordinator
            log.error("terms.not_kept", path=self._path, reason=str(error))
