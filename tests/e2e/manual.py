"""The manual's commands, in order, against real parts of Kubernetes: what they print, and what is left at the end.

The nodes' pods are kwok's: the driver does not run in them. The programs of the two deployments really run, on a node
that is the test's, with the arguments that the deployments give them and their service accounts' rights.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from controller.local.kwok import KwokCluster, running_kwok_cluster
from tests.harness.checkouts import make_checkout
from tests.harness.own_node import Container, OwnNode, Runtime
from tests.harness.shell import Shell
from tests.harness.waiting import until

NAMESPACE = "gke-managed-checkpointing"
NODES = ("gpu-0", "gpu-1", "gpu-2")


def from_checkout(container: Container) -> list[str]:
    """Runs the program of this environment; directories are where they are, since there is no container."""
    places = {**container.volumes, "/tmp": Path("/tmp")}  # noqa: S108 - its own volume

    def placed(text: str) -> str:
        for mounted, directory in places.items():
            text = text.replace(mounted, str(directory))
        return text

    for directory in container.volumes.values():
        for file in directory.glob("*.yaml"):
            file.write_text(placed(file.read_text()))
    program, *arguments = container.command
    return [
        str(Path(sys.executable).parent / program),
        *map(placed, arguments),
        f"--kubeconfig-path={container.kubeconfig}",
        *besides(container),
    ]


def besides(container: Container) -> list[str]:
    """What a program has to be told that would find a service by its name on a cluster."""
    return [f"--ranks-server-address={container.ranks_server}"] if container.name == "controller" else []


@dataclass
class Site:
    """A cluster, a checkout to install from, and who runs what is installed."""

    cluster: KwokCluster
    shell: Shell
    node: OwnNode

    async def rows(self, line: str) -> list[list[str]]:
        """The table that a command prints, without its head."""
        return [row.split() for row in (await self.shell.run(line)).splitlines()[1:]]


@asynccontextmanager
async def running_site(directory: Path, runtime: Runtime = from_checkout) -> AsyncIterator[Site]:
    """Nothing is installed yet. What the programs of the deployments say is in ``directory/own``."""
    logs = directory / "own"
    logs.mkdir()
    async with running_kwok_cluster(directory / "kube") as cluster:
        await cluster.add_nodes(*NODES)
        shell = Shell(make_checkout(directory / "checkout"), cluster.kubeconfig)
        node = OwnNode(cluster, logs, runtime)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run)
            try:
                yield Site(cluster, shell, node)
            finally:
                print("\n\n".join(shell.transcript))  # noqa: T201 - shown with -rP
            nursery.cancel_scope.cancel()


async def follow_the_manual(site: Site, repository: str) -> None:
    """Command by command."""
    shell = site.shell
    await shell.run("make clean-multitier")
    await shell.run(f"make multitier-images REPO_PATH={repository} MULTITIER_TAG=v1")
    applied = await shell.run("kubectl apply -k deploy/multitier/controller")
    assert "deployment.apps/high-scale-checkpointing-controller created" in applied
    await shell.run("kubectl apply -f crd/checkpointconfiguration.yaml")
    await shell.run("kubectl wait --for=condition=Established crd/checkpointconfigurations.checkpointing.gke.io")
    await shell.run("kubectl apply -f examples/checkpointconfiguration.yaml")

    async def is_running() -> bool:
        found = await shell.attempt(f"kubectl get pod -n {NAMESPACE}")
        shell.transcript.pop()
        rows = [row.split()[:3] for row in found.stdout.splitlines()[1:]]
        return len(rows) == 3 + len(NODES) and all(row[1] in ("1/1", "5/5") for row in rows)

    await until(is_running)
    rows = await site.rows(f"kubectl get pod -n {NAMESPACE}")
    ((uid,),) = await site.rows("kubectl get cpc -o custom-columns=uid:.metadata.uid")
    seen = {name.rpartition("-")[0]: (ready, status) for name, ready, status, *_ in rows}
    assert seen.pop(f"multitier-driver-{uid}") == ("5/5", "Running")
    assert {name.rpartition("-")[0]: told for name, told in seen.items()} == {
        "high-scale-checkpointing-controller": ("1/1", "Running"),
        "high-scale-checkpointing-ranks": ("1/1", "Running"),
    }
    pods = await site.cluster.pods(NAMESPACE)
    drivers = [one for one in pods if one["metadata"]["name"].startswith("multitier-driver-")]
    assert {one["spec"]["nodeName"] for one in drivers} == set(NODES)

    async def is_told() -> bool:
        found = await shell.attempt("kubectl get cpc")
        shell.transcript.pop()
        return found.stdout.splitlines()[1].split()[:5] == ["default", "my-checkpoints", "3", "3", "0"]

    await until(is_told, 90)
    await shell.run("kubectl get cpc")

    await shell.run("kubectl delete checkpointconfigurations --all")
    left = [row[0] for row in await site.rows(f"kubectl get pod -n {NAMESPACE}")]
    assert not [name for name in left if name.startswith("multitier-driver-")]
    assert '"nodes.cleaned"' in site.node.log("controller").read_text()
    await shell.run(f"kubectl delete namespace {NAMESPACE}")
    assert "NotFound" in await shell.refused(f"kubectl get namespace {NAMESPACE}")
    await shell.run("make clean-multitier")
    assert not list((shell.directory / "deploy").rglob("*image*.yaml"))
