"""Keeps the Secrets with certificates as they should be (``certificates.py`` says how that is)."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import structlog
import trio

from controller.driver import names
from controller.driver.configuration import Configuration
from controller.driver.containers import Settings
from controller.driver.manifests import owned_metadata
from controller.reconciling.certificates import (
    AUTHORITY,
    RANKS,
    Authority,
    Files,
    decoded,
    encoded,
    new_authority,
    nodes_files,
    server_files,
    utc_now,
)
from controller.reconciling.selection import runs_on
from controller.reconciling.world import World
from controller.writing import Writer
from fuse_tier.errors import ConfigError, TierRefused

log = structlog.get_logger(__name__)

_SECRET: Final = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque"}


class Issuer:
    """Signs for the whole cluster. Its calls raise as a Writer's do."""

    def __init__(self, writer: Writer, world: World, settings: Settings) -> None:
        self._writer = writer
        self._world = world
        self._settings = settings
        self._collection = f"/api/v1/namespaces/{settings.namespace}/secrets"
        self._limiter = trio.CapacityLimiter(1)
        self._making = trio.Lock()  # both calls may find that there is no authority

    async def serve_ranks(self) -> None:
        """Sees that the ranks server has its certificate."""
        authority = await self._authority()
        wanted = await self._thread(partial(server_files, authority, self._present(RANKS), utc_now()))
        await self._put({"name": RANKS, "namespace": self._settings.namespace}, wanted)

    async def serve_nodes(self, configuration: Configuration) -> None:
        """Sees that each of its nodes has one."""
        authority = await self._authority()
        name = names.certificates_name(configuration.uid)
        nodes = [node.name for node in self._world.nodes.values() if runs_on(configuration, node)]
        wanted = await self._thread(partial(nodes_files, authority, nodes, self._present(name), utc_now()))
        await self._put(owned_metadata(configuration, name, self._settings), wanted)

    async def _authority(self) -> Authority:
        async with self._making:
            if AUTHORITY not in self._world.secrets:
                metadata = {"name": AUTHORITY, "namespace": self._settings.namespace}
                files = await self._thread(new_authority)
                body = {**_SECRET, "metadata": metadata, "data": encoded(files)}
                self._world.see_secret(await self._writer.create(self._collection, body))
                log.info("authority.made", secret=AUTHORITY)
        files = self._present(AUTHORITY)
        try:
            return Authority(files["ca.crt"], files["ca.key"])
        except KeyError as error:
            raise TierRefused(f"the Secret {AUTHORITY} lacks {error}: delete it, and a new one is made") from error

    async def _put(self, metadata: dict[str, Any], files: Files) -> None:
        name = metadata["name"]
        if self._present(name) == files:
            return
        body = {**_SECRET, "metadata": metadata, "data": encoded(files)}
        self._world.see_secret(await self._writer.apply(f"{self._collection}/{name}", body))
        log.info("certificates.issued", secret=name)

    def _present(self, name: str) -> dict[str, bytes]:
        return decoded(self._world.secrets.get(name, {}))

    async def _thread(self, work: Any) -> Any:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except ConfigError as error:  # a node's name that no certificate has room for, or an authority that is none
            raise TierRefused(f"certificates cannot be made: {error}") from error
