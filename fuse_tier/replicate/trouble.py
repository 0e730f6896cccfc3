"""That a node's reports do not get through is told once for each kind of trouble, and that they do again."""

from __future__ import annotations

import structlog

from fuse_tier import metrics
from fuse_tier.errors import DeadlineExceeded, FuseTierError, TierUnavailable

log = structlog.get_logger(__name__)


class Trouble:
    """With the coordinator at ``address``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._kind = ""

    def tell(self, error: FuseTierError, *, is_first: bool) -> None:
        """Logs an outage or a refusal once; raises a refusal of a node whose first report this would be."""
        passing = isinstance(error, TierUnavailable | DeadlineExceeded)
        if not passing and is_first:
            raise error
        kind = "unavailable" if passing else "refused"
        if self._kind == kind:
            return
        self._kind = kind
        metrics.error("coordinator")
        if passing:
            log.warning(
                "membership.coordinator_unavailable",
                address=self._address,
                reason=str(error),
                remedy="it is tried again; until it answers, nothing new can be mounted",
            )
        else:
            log.error("membership.refused", address=self._address, reason=str(error))

    def ends(self) -> bool:
        """A report was answered: says so if there was trouble."""
        had, self._kind = bool(self._kind), ""
        if had:
            log.info("membership.coordinator_back", address=self._address)
        return had
