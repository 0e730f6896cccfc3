"""What becomes of a configuration that is being deleted: first its pods go, then what they left, then what they read.

The invariant: nothing is left on nodes that answer, unless a person is told so. What stands in the cluster says how
far it is, so another replica goes on from there: the config map goes only when the nodes are clean, or given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import structlog
import trio

from controller.driver import names
from controller.driver.cleaner import cleaner
from controller.driver.configuration import Configuration
from controller.driver.containers import Settings
from controller.driver.images import choose_images
from controller.reconciling.conditions import Event, Findings, read_rollout
from controller.reconciling.queue import Queue
from controller.reconciling.selection import runs_on
from controller.reconciling.telling import Teller
from controller.reconciling.world import World
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import ConfigError, TierRefused

log = structlog.get_logger(__name__)

CLEAN_SECONDS: Final = 300.0

Object = Mapping[str, Any]


class Remover:
    """Of configurations. ``images`` is the config map that names them; nodes are given up after ``clean_seconds``."""

    def __init__(
        self,
        writer: Writer,
        world: World,
        queue: Queue,
        teller: Teller,
        settings: Settings,
        *,
        images: str,
        clean_seconds: float,
    ) -> None:
        self._writer = writer
        self._world = world
        self._queue = queue
        self._teller = teller
        self._settings = settings
        self._images = images
        self._clean_seconds = clean_seconds
        self._begun: dict[str, float] = {}  # when a cleaner was first seen, by uid
        self._daemonsets = f"/apis/apps/v1/namespaces/{settings.namespace}/daemonsets"
        core = f"/api/v1/namespaces/{settings.namespace}"
        self._config_maps, self._secrets = f"{core}/configmaps", f"{core}/secrets"

    async def remove(self, configuration: Configuration) -> bool:
        """Goes as far as can be; whether nothing of it is left. To be called again whenever something changes."""
        uid = configuration.uid
        if (driver := self._world.daemonsets.get(uid)) is not None:
            await self._delete_daemonset(configuration, driver)
            return False
        if names.daemonset_name(uid) in self._world.config_maps and not await self._is_clean(configuration):
            return False
        await self._delete_what_pods_read(configuration)
        self._begun.pop(uid, None)
        if (found := self._world.cleaners.get(uid)) is not None:
            await self._delete_daemonset(configuration, found)
            return False
        return True

    async def _is_clean(self, configuration: Configuration) -> bool:
        """Whether its nodes are, or cannot be made so."""
        answering = self._world.answering_nodes()
        nodes = sum(node.name in answering and runs_on(configuration, node) for node in self._world.nodes.values())
        cleaning = self._world.cleaners.get(configuration.uid)
        if not nodes:
            return True
        if cleaning is None:
            return not await self._try_to_clean(configuration)
        rollout = read_rollout(cleaning)
        if rollout.is_seen and rollout.ready >= nodes:
            log.info("nodes.cleaned", configuration=configuration.name, nodes=nodes)
            return True
        now = trio.current_time()
        left = self._begun.setdefault(configuration.uid, now) + self._clean_seconds - now
        if left <= 0:
            await self._give_up(
                configuration, f"{rollout.ready} of {nodes} nodes are clean after {CLEAN_SECONDS:g} s"
            )
            return True
        logs = f"kubectl logs --namespace {self._settings.namespace} -l {names.CLEANS_LABEL}={configuration.uid}"
        told = f"{rollout.ready} of {nodes} nodes are clean: {logs} says what the others wait for"
        await self._teller.tell(
            configuration, Findings(configuration.name, configuration.generation, None, cleaning=told)
        )
        self._queue.later(configuration.uid, left)
        return False

    async def _try_to_clean(self, configuration: Configuration) -> bool:
        """Whether that has begun."""
        name = names.cleaner_name(configuration.uid)
        try:
            wanted = cleaner(configuration, choose_images(self._images, self._world.images()), self._settings)
            made = await self._writer.apply(f"{self._daemonsets}/{name}", wanted)
        except Clash:
            raise
        except (ConfigError, TierRefused) as error:  # without images, or in a namespace that is going
            await self._give_up(configuration, str(error))
            return False
        self._world.see_daemonset(made)
        log.info("cleaner.applied", configuration=configuration.name, daemonset=name)
        return True

    async def _give_up(self, configuration: Configuration, reason: str) -> None:
        remedy = "clean them by hand: docs/kubernetes.md, 'To remove all'"
        log.warning("nodes.not_cleaned", configuration=configuration.name, reason=reason, remedy=remedy)
        await self._teller.send(configuration, Event(True, "NodesNotCleaned", f"{reason}; {remedy}"))

    async def _delete_what_pods_read(self, configuration: Configuration) -> None:
        for collection, known in (
            (self._config_maps, self._world.config_maps),
            (self._secrets, self._world.secrets),
        ):
            for name, one in list(known.items()):
                if _is_of(one["metadata"], configuration):
                    await self._delete(f"{collection}/{name}")

    async def _delete_daemonset(self, configuration: Configuration, found: Object) -> None:
        """Its pods go before it. Once."""
        if "deletionTimestamp" not in found["metadata"]:
            name = found["metadata"]["name"]
            await self._delete(f"{self._daemonsets}/{name}", "Foreground")
            log.info("daemonset.deleted", configuration=configuration.name, daemonset=name)

    async def _delete(self, path: str, propagation: str = "Background") -> None:
        try:
            await self._writer.delete(path, propagation)
        except Gone:
            log.info("object.gone_already", path=path)


def _is_of(metadata: Object, configuration: Configuration) -> bool:
    """Whether an object was made for a configuration, and not for a later one of its name."""
    named = (metadata.get("annotations") or {}).get(names.CONFIGURATION_ANNOTATION)
    uid = (metadata.get("labels") or {}).get(names.UID_LABEL, configuration.uid)
    return bool(named == configuration.name and uid == configuration.uid)
