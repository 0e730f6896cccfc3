"""Where nodes find the ranks server that leads: its pod alone has the label that the service selects.

Readiness would tell it as well, but a deployment whose second pod is never ready never counts as rolled out.
"""

from __future__ import annotations

from typing import Final

import structlog

from controller.writing import Gone, Writer
from fuse_tier.errors import TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

LABEL: Final = "checkpointing.gke.io/coordinator"
LEADS: Final = "leader"


class Sign:
    """Of the server in pod ``namespace``/``pod``."""

    def __init__(self, writer: Writer, namespace: str, pod: str) -> None:
        self._writer = writer
        self._namespace = namespace
        self._pod = pod

    async def put_up(self) -> None:
        """This one leads: who led before is not found any more. Raises TierUnavailable and TierRefused."""
        for other in (await self._writer.read("/api/v1/pods", LABEL))["items"]:
            name, namespace = other["metadata"]["name"], other["metadata"]["namespace"]
            if namespace == self._namespace and name != self._pod:
                await self._label(name, None)
        await self._label(self._pod, LEADS)

    async def take_down(self) -> None:
        """This one does not lead, or not any more. Tells what fails, and goes on: who leads next takes it as well."""
        try:
            await self._label(self._pod, None)
        except (TierUnavailable, TierRefused) as error:
            log.info("sign.not_taken_down", pod=self._pod, reason=str(error))

    async def _label(self, pod: str, value: str | None) -> None:
        try:
            path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}"
            await self._writer.merge(path, {"metadata": {"labels": {LABEL: value}}})
        except Gone:
            if value is not None:
                raise
