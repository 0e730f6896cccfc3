"""What a real API server says of the manifests."""

from __future__ import annotations

from typing import Any

import pytest

from controller.driver.manifests import config_map, daemonset
from controller.driver.sameness import differences
from controller.local.kube import ApiServer
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import TierRefused, TierUnavailable
from tests.controller.configurations import IMAGES, SETTINGS, configuration

pytestmark = pytest.mark.kube
NAMESPACE = f"/api/v1/namespaces/{SETTINGS.namespace}"
WHOLE: dict[str, Any] = {
    "csiEphemeralLimit": "5120M",
    "enableExternalJaxProcessIds": True,
    "drain": "2m",
    "tolerations": [{"operator": "Exists"}],
}


async def test_the_api_server_takes_the_manifests_and_leaves_them_as_they_are(api_server: ApiServer) -> None:
    with api_server.client as api:
        writer = Writer(api, 100)
        await writer.create("/api/v1/namespaces", {"metadata": {"name": SETTINGS.namespace}})
        for spec in ({}, WHOLE, {"nodeSelector": None, "tolerations": None}):
            for manifest in (
                daemonset(configuration(**spec), IMAGES, SETTINGS),
                config_map(configuration(**spec), SETTINGS),
            ):
                group = "/apis/apps/v1" if manifest["kind"] == "DaemonSet" else "/api/v1"
                kind = "daemonsets" if manifest["kind"] == "DaemonSet" else "configmaps"
                path = f"{group}/namespaces/{SETTINGS.namespace}/{kind}/{manifest['metadata']['name']}"
                found = await writer.apply(path, manifest, dry_run=True)
                assert differences(manifest, found) == []
        with pytest.raises(Gone, match="not found"):
            await writer.read(path)


async def test_who_writes_is_told_what_the_server_said(api_server: ApiServer) -> None:
    with api_server.client as api, api_server.client_of("nobody") as powerless:
        writer = Writer(api, 100)
        await writer.create("/api/v1/namespaces", {"metadata": {"name": "a"}})
        with pytest.raises(Clash, match="already exists"):
            await writer.create("/api/v1/namespaces", {"metadata": {"name": "a"}})
        with pytest.raises(TierRefused, match="Invalid value"):
            await writer.create("/api/v1/namespaces", {"metadata": {"name": "A b"}})
        with pytest.raises(TierRefused, match='User "nobody" cannot delete resource "namespaces"'):
            await Writer(powerless, 100).delete("/api/v1/namespaces/a")
        await api_server.stop()
        with pytest.raises(TierUnavailable, match="/api/v1/namespaces/a: "):
            await writer.read("/api/v1/namespaces/a")
        await api_server.start()
        assert (await writer.read("/api/v1/namespaces/a"))["metadata"]["name"] == "a"
