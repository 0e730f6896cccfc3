from __future__ import annotations

from functools import partial

import pytest
import trio

from controller import watching
from controller.local.kube import ApiServer
from controller.watching import Collection, Object, connect
from fuse_tier.errors import ConfigError
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = pytest.mark.kube
NAMESPACES = "/api/v1/namespaces"


class Names:
    """A follower that knows what there is."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def seen(self, found: Object) -> None:
        self.found[found["metadata"]["uid"]] = found["metadata"]["name"]

    def lost(self, key: str) -> None:
        del self.found[key]

    @property
    def mine(self) -> set[str]:
        return {name for name in self.found.values() if name.startswith("mine")}

    async def until_mine_are(self, *names: str) -> None:
        async def so() -> bool:
            return self.mine == set(names)

        await until(so)


async def make(server: ApiServer, name: str) -> None:
    await server.create("/api/v1/nodes", {"metadata": {"name": name}})


async def test_what_is_there_is_told_first_and_then_what_changes_also_while_the_server_was_away(
    api_server: ApiServer, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_logs.allow("api.unavailable")
    monkeypatch.setattr(watching, "_CHUNK", 2)
    monkeypatch.setattr(watching, "_WATCH_SECONDS", 1)
    names = ["mine-a", "mine-b", "mine-c", "mine-d", "mine-e"]
    for name in names:
        await make(api_server, name)
    known = Names()
    with api_server.client as api:
        async with trio.open_nursery() as nursery:
            await nursery.start(Collection(api, "/api/v1/nodes", known).follow)
            assert known.mine == set(names)
            await make(api_server, "mine-f")
            await known.until_mine_are(*names, "mine-f")
            await api_server.delete("/api/v1/nodes/mine-a")
            await known.until_mine_are(*names[1:], "mine-f")
            await api_server.stop()
            await api_server.start()
            await api_server.delete("/api/v1/nodes/mine-b")
            await known.until_mine_are(*names[2:], "mine-f")
            nursery.cancel_scope.cancel()


async def test_a_watch_that_began_too_long_ago_begins_anew(api_server: ApiServer) -> None:
    await make(api_server, "mine-a")
    known = Names()
    with api_server.client as api:
        collection = Collection(api, "/api/v1/nodes", known)
        collection._version = "1"  # of before anything that the server keeps
        collection._keys = {"gone"}
        known.found["gone"] = "mine-gone"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collection.follow)
            await known.until_mine_are("mine-a")
            nursery.cancel_scope.cancel()


async def test_who_has_no_rights_is_told_so_once_and_served_when_it_gets_them(
    api_server: ApiServer, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_logs.allow("api.unavailable")
    await make(api_server, "mine-a")
    known = Names()
    with api_server.client_of("nobody") as api:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Collection(api, "/api/v1/nodes", known).follow)

            async def refused() -> bool:
                return any("nodes is forbidden" in line.text for line in expected_logs.heard)

            await until(refused)
            rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]
            rbac = "/apis/rbac.authorization.k8s.io/v1"
            await api_server.create(f"{rbac}/clusterroles", {"metadata": {"name": "reader"}, "rules": rules})
            await api_server.create(
                f"{rbac}/clusterrolebindings",
                {
                    "metadata": {"name": "reader"},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
                    "subjects": [{"kind": "User", "name": "nobody"}],
                },
            )
            await known.until_mine_are("mine-a")
            nursery.cancel_scope.cancel()


def test_without_a_cluster_it_says_what_to_name() -> None:
    with pytest.raises(ConfigError, match="--kubeconfig-path"):
        connect()
    with pytest.raises(ConfigError, match="--kubeconfig-path"):
        connect("/nonexistent/kubeconfig")


async def test_that_there_is_no_such_kind_is_an_answer_for_who_waits(api_server: ApiServer) -> None:
    with api_server.client as api:
        things = Collection(api, "/apis/nobody.example/v1/things", Names(), may_lack=True)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(30):
                await nursery.start(partial(things.follow, lacking_is_known=True))
            nursery.cancel_scope.cancel()
