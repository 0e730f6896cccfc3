"""Where nodes find the ranks server that leads: its pod alone has the label that the service selects.

Readiness would tell it as well, but a deployment whose second pod is never ready never counts as rolled out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from controller.writing import Gone, Writer
from fuse_tier.errors import TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

LABEL: Final = "checkpointing.gke.io/coordinator"
LEADS: Final = "leader"
_LOOK_EVERY_SECONDS: Final = 15.0


class Sign:
    """Of the server in pod ``namespace``/``pod``."""

    def __init__(self, writer: Writer, namespace: str, pod: str) -> None:
        self._writer = writer
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._pod = pod

    async def keep_up(
        self, holds: Callable[[], bool], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """For as long as this one leads, as ``holds`` says: who led before is not found any more.

        Started when the sign is up. It is looked at again and again: one that led before, and was held up, may take
        it down, and so may anybody. Raises TierUnavailable and TierRefused until it was up once.
        """
        await self._put_up(await self._labelled(), holds)
        task_status.started()
        while True:
            await trio.sleep(_LOOK_EVERY_SECONDS)
            try:
                labelled = await self._labelled()
                if labelled != [self._pod]:
                    log.warning("sign.put_up_again", pod=self._pod, found=labelled)
                    await self._put_up(labelled, holds)
            except (TierUnavailable, TierRefused) as error:
                log.info("sign.not_seen", pod=self._pod, reason=str(error))

    async def _put_up(self, labelled: list[str], holds: Callable[[], bool]) -> None:
        for pod in labelled:
            if pod != self._pod and holds():
                await self._label(pod, None)
        if holds():
            await self._label(self._pod, LEADS)

    async def _labelled(self) -> list[str]:
        return [one["metadata"]["name"] for one in (await self._writer.read(self._pods, LABEL))["items"]]

    async def take_down(self) -> None:
        """This one does not lead, or not any more. Tells what fails, and goes on: who leads next takes it as well."""
        try:
            await self._label(self._pod, None)
        except (TierUnavailable, TierRefused) as error:
            log.info("sign.not_taken_down", pod=self._pod, reason=str(error))

    async def _label(self, pod: str, value: str | None) -> None:
        try:
            # Of a pod's status: the right to change the pod itself would be one to change what it runs.
            await self._writer.merge(f"{self._pods}/{pod}/status", {"metadata": {"labels": {LABEL: value}}})
        except Gone:
            if value is not None:
                raise
