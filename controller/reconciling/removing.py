"""What becomes of a configuration that is being deleted: first its pods go, then what they left, then what they read.

The invariant: nothing is left on nodes that answer, unless a person is told so. What stands in the cluster says how
far it is, so another replica goes on from there: the config map goes only when the nodes are clean, or given up.
Where Kubernetes took it before (``kubectl delete --cascade=foreground``), the status still says that there was a
driver; then nodes may be cleaned twice. A node on which another, living configuration has its driver is that one's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import structlog
import trio

from controller.driver import names
from controller.driver.cleaner import affinity, cleaner
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
REMEDY: Final = "docs/kubernetes.md, 'To remove all'"

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
        self._cleaned: set[str] = set()  # uids of those whose nodes are clean, or given up
        self._daemonsets = f"/apis/apps/v1/namespaces/{settings.namespace}/daemonsets"
        core = f"/api/v1/namespaces/{settings.namespace}"
        self._config_maps, self._secrets = f"{core}/configmaps", f"{core}/secrets"

    async def remove(self, configuration: Configuration) -> bool:
        """Goes as far as can be; whether nothing of it is left. To be called again whenever something changes."""
        uid = configuration.uid
        if (driver := self._world.daemonsets.get(uid)) is not None:
            await self._delete_daemonset(configuration, driver)
            await self._tell_what_ends(configuration)
            return False
        if self._may_have_left_something(configuration) and not await self._is_clean(configuration):
            return False
        self._cleaned = {uid, *self._cleaned} & set(self._world.configurations)
        await self._delete_what_pods_read(configuration)
        self._begun.pop(uid, None)
        if (found := self._world.cleaners.get(uid)) is not None:
            await self._delete_daemonset(configuration, found)
            return False
        return True

    def _may_have_left_something(self, configuration: Configuration) -> bool:
        uid = configuration.uid
        had_driver = bool(configuration.status.get("instanceHandle")) or (
            names.daemonset_name(uid) in self._world.config_maps
        )
        return had_driver and uid not in self._cleaned

    def _shared_nodes(self, configuration: Configuration) -> set[str]:
        """Nodes on which another configuration has its driver, and keeps it."""
        others = [
            one
            for one in self._world.configurations.values()
            if one.uid != configuration.uid and not one.is_deleted and one.uid in self._world.daemonsets
        ]
        return {node.name for node in self._world.nodes.values() if any(runs_on(one, node) for one in others)}

    async def _tell_what_ends(self, configuration: Configuration) -> None:
        where = f"--namespace {self._settings.namespace} -l {names.UID_LABEL}={configuration.uid}"
        told = (
            f"the driver's pods end: kubectl get pods -o wide {where} shows which have not. "
            f"One on a node that does not answer stays: {REMEDY}"
        )
        await self._tell(configuration, Findings(configuration.name, configuration.generation, None, ending=told))

    async def _tell(self, configuration: Configuration, found: Findings) -> None:
        try:
            await self._teller.tell(configuration, found)
        except Gone:
            log.info("object.gone_already", path=configuration.name)

    async def _is_clean(self, configuration: Configuration) -> bool:
        """Whether its nodes are, or cannot be made so."""
        shared = self._shared_nodes(configuration)
        answering = self._world.answering_nodes() - shared
        nodes = sum(node.name in answering and runs_on(configuration, node) for node in self._world.nodes.values())
        cleaning = self._world.cleaners.get(configuration.uid)
        if not nodes:
            return True
        if cleaning is None or cleaning["spec"]["template"]["spec"].get("affinity", {}) != affinity(shared):
            return not await self._try_to_clean(configuration, shared)
        rollout = read_rollout(cleaning)
        if rollout.is_seen and rollout.ready >= nodes:
            log.info("nodes.cleaned", configuration=configuration.name, nodes=nodes)
            return True
        now = trio.current_time()
        left = self._begun.setdefault(configuration.uid, now) + self._clean_seconds - now
        if left <= 0:
            await self._give_up(
                configuration, f"{rollout.ready} of {nodes} nodes are clean after {self._clean_seconds:g} s"
            )
            return True
        logs = f"kubectl logs --namespace {self._settings.namespace} -l {names.CLEANS_LABEL}={configuration.uid}"
        told = f"{rollout.ready} of {nodes} nodes are clean: {logs} says what the others wait for"
        await self._tell(configuration, Findings(configuration.name, configuration.generation, None, cleaning=told))
        self._queue.later(configuration.uid, left)
        return False

    async def _try_to_clean(self, configuration: Configuration, shared: Collection[str]) -> bool:
        """Whether that has begun."""
        name = names.cleaner_name(configuration.uid)
        try:
            images = choose_images(self._images, self._world.images())
            wanted = cleaner(configuration, images, self._settings, shared)
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
        remedy = f"clean them by hand: {REMEDY}"
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
