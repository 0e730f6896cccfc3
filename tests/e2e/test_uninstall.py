"""What removes a configuration when no controller is there to let it go: the commands of docs/kubernetes.md.

With kwok's nodes and Kubernetes' own garbage collector, which alone is left to take the driver away then.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controller.driver import names
from controller.local.programs import TOOLS
from tests.e2e.manual import NAMESPACE, NODES, Site, running_site
from tests.harness.checkouts import give_recorder
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.kube, pytest.mark.timeout(420)]
DRIVER = "multitier-driver-"
# Kubernetes' collector looks for kinds that are new every 30 s, and for their objects ever more seldom until then.
_COLLECTED_SECONDS = 240


def way_out() -> str:
    """The command that the guide gives for a configuration that stays."""
    text = (TOOLS.parent / "docs/kubernetes.md").read_text()
    (found,) = re.findall(r"^kubectl patch cpc NAME .+$", text, re.MULTILINE)
    return str(found).replace("NAME", "default")


async def install(site: Site) -> None:
    """Until the driver runs everywhere."""
    shell = site.shell
    shell.variables["CONTAINER_TOOL"] = give_recorder(shell.directory)
    await shell.run("make multitier-images REPO_PATH=registry.example/project MULTITIER_TAG=v1")
    await shell.run("kubectl apply -f crd/checkpointconfiguration.yaml")
    await shell.run("kubectl wait --for=condition=Established crd/checkpointconfigurations.checkpointing.gke.io")
    await shell.run("kubectl apply -k deploy/multitier/controller")
    await shell.run("kubectl apply -f examples/checkpointconfiguration.yaml")
    await shell.run("kubectl wait --for=condition=Ready cpc/default --timeout=120s")
    assert len(await drivers(site)) == len(NODES)


async def drivers(site: Site) -> list[str]:
    found = [one["metadata"]["name"] for one in await site.cluster.pods(NAMESPACE)]
    return [name for name in found if name.startswith(DRIVER)]


async def finalizers(site: Site) -> str:
    return await site.shell.run("kubectl get cpc default -o jsonpath='{.metadata.finalizers}'")


@pytest.mark.parametrize("first", ["controller", "namespace"])
async def test_a_configuration_whose_controller_is_gone_stays_until_it_is_let_go_by_hand_and_nothing_of_it_is_left(
    tmp_path: Path, expected_logs: ExpectedLogs, first: str
) -> None:
    expected_logs.allow(
        "api.unavailable", "reconcile.failed", "watch.refused", "certificates.not_issued", "election.failed"
    )  # fmt: skip
    expected_logs.watch(tmp_path / "own")
    async with running_site(tmp_path) as site:
        await install(site)
        if first == "controller":
            site.node.kill("controller")
        else:
            await site.shell.run(f"kubectl delete namespace {NAMESPACE}")
            assert await drivers(site) == []
        said = await site.shell.refused("kubectl delete checkpointconfigurations --all --timeout=3s")
        assert "timed out waiting" in said
        assert names.FINALIZER in await finalizers(site)

        await site.shell.run(way_out())
        await site.shell.run("kubectl wait --for=delete cpc/default --timeout=60s")

        async def is_clean() -> bool:
            left = await site.shell.run(f"kubectl get ds,cm,secret -n {NAMESPACE} -o name")
            site.shell.transcript.pop()
            return not (await drivers(site) or DRIVER in left)

        await until(is_clean, _COLLECTED_SECONDS)
        await site.shell.run("kubectl delete --ignore-not-found -k deploy/multitier/controller")
        left = await site.shell.run("kubectl get clusterrole,clusterrolebinding,csidriver -o name")
        assert "checkpointing" not in left
        assert "multitier" not in left
