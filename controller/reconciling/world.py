"""What the controller knows of the cluster: the newest of each object that matters to it, as watches tell it.

Invariant: it never goes back to an older version of an object than it has had from a write of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog
from kubernetes.client import ApiClient

from controller.driver import names
from controller.driver.configuration import Configuration, read_configuration
from controller.reconciling.selection import Node, read_node
from controller.watching import Collection

log = structlog.get_logger(__name__)

# Set while a kubelet does not answer: https://kubernetes.io/docs/reference/labels-annotations-taints/
_SILENT = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
CONFIGURATIONS = f"/apis/{names.GROUP}/v1/checkpointconfigurations"

Object = Mapping[str, Any]


class World:
    """``changed`` is called with a configuration's uid, or None when all may be concerned. It may not block."""

    def __init__(self, changed: Callable[[str | None], None]) -> None:
        self._changed = changed
        self.configurations: dict[str, Configuration] = {}
        self.versions: dict[str, str] = {}
        self.daemonsets: dict[str, Object] = {}  # by uid of their configuration
        self.cleaners: dict[str, Object] = {}  # daemonsets that leave nothing on nodes; likewise
        self.config_maps: dict[str, Object] = {}  # by name
        self.secrets: dict[str, Object] = {}  # by name
        self.nodes: dict[str, Node] = {}  # by uid
        self.has_jobsets: bool | None = None
        """Whether JobSets are installed; None while that is not known."""
        self.is_complete = False
        """Whether all that there is has been told once: nothing is concluded before."""
        self.refused: dict[str, str] = {}
        """Collections that the API server does not let be read, and what it said."""

    def complete(self) -> None:
        """All has been told."""
        self.is_complete = True
        self._changed(None)

    def see_refusal(self, path: str, reason: str) -> None:
        """The API server says no to a collection; or, with no reason, not any more."""
        if reason:
            self.refused[path] = reason
        else:
            self.refused.pop(path, None)
        self._changed(None)

    def answering_nodes(self) -> set[str]:
        """Nodes whose kubelet Kubernetes hears of."""
        return {one.name for one in self.nodes.values() if not any(key in _SILENT for key, _, _ in one.taints)}

    def collections(self, api: ApiClient, namespace: str) -> Iterator[Collection]:
        """Everything that is followed: configurations first, so that they can be told what of the rest is refused."""
        apps, space = f"/apis/apps/v1/namespaces/{namespace}/daemonsets", f"/api/v1/namespaces/{namespace}"
        # Its kind may come later.
        yield Collection(api, CONFIGURATIONS, _Configurations(self), longest_pause=5.0)
        told = self.see_refusal
        yield Collection(api, "/api/v1/nodes", _Nodes(self), refused=told)
        yield Collection(api, f"{space}/configmaps", _Named(self, self.config_maps), refused=told)
        yield Collection(api, f"{space}/secrets", _Named(self, self.secrets), refused=told)
        yield Collection(api, apps, _Daemonsets(self), names.SELECTED, refused=told)

    def jobsets(self, api: ApiClient) -> Collection:
        """The definition of JobSets: nothing waits for what is said of it."""
        definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        return Collection(api, definitions, _JobSets(self), {"fieldSelector": f"metadata.name={names.JOBSETS}"})

    def see_jobsets(self, are_there: bool) -> None:
        """They are installed, or not."""
        if self.has_jobsets != are_there:
            self.has_jobsets = are_there
            self._changed(None)

    def images(self) -> dict[str, Mapping[str, str]]:
        """The data of all config maps, by their names."""
        return {name: found.get("data") or {} for name, found in self.config_maps.items()}

    def see_configuration(self, found: Object) -> None:
        """It is there, or has changed."""
        uid = found["metadata"]["uid"]
        if not _is_newer(found["metadata"], self.versions.get(uid)):
            return
        before = self.configurations.get(uid)
        now = self.configurations[uid] = read_configuration(found, before)
        self.versions[uid] = found["metadata"]["resourceVersion"]
        if now.fault and (before is None or before.fault != now.fault):
            remedy = "mend it; until then nothing of it is changed"
            log.warning("configuration.unreadable", name=now.name, reason=now.fault, remedy=remedy)
        self._changed(uid)
        if before is None or (before.node_selector, before.tolerations) != (now.node_selector, now.tolerations):
            self._changed(None)

    def lose_configuration(self, uid: str) -> None:
        """It is gone."""
        self.configurations.pop(uid, None)
        self.versions.pop(uid, None)
        self._changed(uid)
        self._changed(None)

    def occupying(self) -> set[str]:
        """Configurations that have something on nodes, or whose nodes may not be clean yet."""
        going = {
            uid
            for uid, one in self.configurations.items()
            if one.is_deleted and names.daemonset_name(uid) in self.config_maps
        }
        return {*self.daemonsets, *self.cleaners, *going}

    def see_daemonset(self, found: Object) -> None:
        """It is there, or has changed."""
        known, uid = self.daemonsets, _configuration_of(found)
        if uid is None:
            known, uid = self.cleaners, found["metadata"].get("labels", {}).get(names.CLEANS_LABEL)
        if uid is None:
            return
        before = known.get(uid)
        if before is None or _is_newer(found["metadata"], before["metadata"]["resourceVersion"]):
            known[uid] = found
            self._changed(uid if before is not None else None)

    def lose_daemonset(self, uid: str) -> None:
        """The one with that uid of its own is gone."""
        for known in (self.daemonsets, self.cleaners):
            for configuration, found in list(known.items()):
                if found["metadata"]["uid"] == uid:
                    del known[configuration]
                    self._changed(None)  # who was in conflict with it is not any more

    def see_config_map(self, found: Object) -> None:
        """It is there, or has changed."""
        self.see_named(self.config_maps, found)

    def see_secret(self, found: Object) -> None:
        """It is there, or has changed."""
        self.see_named(self.secrets, found)

    def see_named(self, known: dict[str, Object], found: Object) -> None:
        """An object of one of the collections that are kept by name."""
        name = found["metadata"]["name"]
        before = known.get(name)
        if before is None or _is_newer(found["metadata"], before["metadata"]["resourceVersion"]):
            known[name] = found
            self._changed(_configuration_of(found))

    def lose_named(self, known: dict[str, Object], uid: str) -> None:
        """The one with that uid is gone."""
        for name, found in list(known.items()):
            if found["metadata"]["uid"] == uid:
                del known[name]
                self._changed(_configuration_of(found))

    def see_node(self, uid: str, node: Node | None) -> None:
        """It is there, has changed, or (None) is gone. Most changes of nodes concern nobody here."""
        if node == self.nodes.get(uid):
            return
        if node is None:
            del self.nodes[uid]
        else:
            self.nodes[uid] = node
        self._changed(None)


class _Configurations:
    def __init__(self, world: World) -> None:
        self._world = world

    def seen(self, found: Object) -> None:
        self._world.see_configuration(found)

    def lost(self, key: str) -> None:
        self._world.lose_configuration(key)


class _Daemonsets:
    def __init__(self, world: World) -> None:
        self._world = world

    def seen(self, found: Object) -> None:
        self._world.see_daemonset(found)

    def lost(self, key: str) -> None:
        self._world.lose_daemonset(key)


class _JobSets:
    def __init__(self, world: World) -> None:
        self._world = world

    def seen(self, found: Object) -> None:
        self._world.see_jobsets("deletionTimestamp" not in found["metadata"])

    def lost(self, key: str) -> None:
        self._world.see_jobsets(False)


class _Named:
    def __init__(self, world: World, known: dict[str, Object]) -> None:
        self._world, self._known = world, known

    def seen(self, found: Object) -> None:
        self._world.see_named(self._known, found)

    def lost(self, key: str) -> None:
        self._world.lose_named(self._known, key)


class _Nodes:
    def __init__(self, world: World) -> None:
        self._world = world

    def seen(self, found: Object) -> None:
        self._world.see_node(found["metadata"]["uid"], read_node(found))

    def lost(self, key: str) -> None:
        self._world.see_node(key, None)


def _configuration_of(found: Object) -> str | None:
    uid: str | None = (found["metadata"].get("labels") or {}).get(names.UID_LABEL)
    return uid


def _is_newer(metadata: Object, version: str | None) -> bool:
    """Versions of one object can be compared as numbers (KEP-5504)."""
    return version is None or int(metadata["resourceVersion"]) > int(version)
