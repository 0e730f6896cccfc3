"""The sidecars of the driver's pod, run as the daemonset has them, make the plugin known, and say when it is well.

They are the Kubernetes project's own where those are on this machine, and stand-ins (sidecars.py) besides.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from controller.driver import names
from controller.driver.manifests import daemonset
from csi.local.kubelet import Kubelet
from csi.local.registration import Registered, register, sockets
from csi.services import DRIVER_NAME
from fuse_tier.localcluster.ports import free_ports
from tests.controller.configurations import IMAGES, SETTINGS, configuration
from tests.csi.conftest import Plugin
from tests.csi.sidecars import LIVENESS_PROBE, REGISTRAR
from tests.harness import needs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

POD: dict[str, Any] = daemonset(configuration(), IMAGES, SETTINGS)["spec"]["template"]["spec"]


def arguments(container: str, kubelet: Kubelet, endpoint: str) -> list[str]:
    """Of a sidecar in the daemonset, for a kubelet with another directory, and a process in no container."""
    (found,) = [one for one in POD["containers"] if one["name"] == container]
    places = {one["name"]: one["hostPath"]["path"] for one in POD["volumes"] if "hostPath" in one}
    told = dict(arg.split("=", 1) for arg in found["args"])
    if container == "registrar":
        told.setdefault("--plugin-registration-path", "/registration")  # what it is without being told
    for option, value in told.items():
        for mount in found["volumeMounts"]:
            if value == mount["mountPath"] or value.startswith(f"{mount['mountPath']}/"):
                told[option] = places[mount["name"]] + value.removeprefix(mount["mountPath"])
        told[option] = told[option].replace(names.KUBELET, str(kubelet.directory))
    told["--http-endpoint"] = endpoint  # its port may be taken here, and is free in a container's pod
    return [f"{option}={value}" for option, value in told.items()]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def healthz(endpoint: str) -> int:
    """The status that kubelet gets; 0 while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{endpoint}/healthz", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return 0


async def until_status(endpoint: str, status: int) -> None:
    async def is_so() -> bool:
        return await trio.to_thread.run_sync(healthz, endpoint) == status

    await until(is_so)


async def until_registered(kubelet: Kubelet) -> Registered:
    async def is_there() -> bool:
        return bool(sockets(kubelet.directory))

    await until(is_there)
    (socket,) = sockets(kubelet.directory)
    return await register(socket)


@pytest.mark.parametrize("whose", [pytest.param("kubernetes", marks=pytest.mark.sidecars), "stand-ins"])
async def test_kubelet_learns_of_the_plugin_by_its_sidecars_and_whether_it_is_well(
    whose: str, plugin: Plugin, tmp_path: Path
) -> None:
    kubelet = plugin.kubelet
    registrar_port, probe_port = free_ports(2)
    registrar, probe = f"127.0.0.1:{registrar_port}", f"127.0.0.1:{probe_port}"
    with ExitStack() as stack:
        for name, container, endpoint in (
            (REGISTRAR, "registrar", registrar),
            (LIVENESS_PROBE, "liveness-probe", probe),
        ):
            program = [str(needs.program(name))]
            if whose == "stand-ins":
                program = [sys.executable, "-m", "tests.csi.sidecars", name]
            command = [*program, *arguments(container, kubelet, endpoint)]
            stack.enter_context(running(command, tmp_path / f"{name}.out"))
        known = await until_registered(kubelet)
        assert (known.name, known.endpoint) == (DRIVER_NAME, kubelet.socket)
        assert (known.node_id, known.volume_limit) == ("a", 100)
        await until_status(registrar, 200)
        await until_status(probe, 200)
        pod = await kubelet.start("llama-0")
        await plugin.kill()
        await until_status(probe, 500)
        await plugin.start()
        await until_status(probe, 200)
        assert await until_registered(kubelet) == known, "as a kubelet that was started again does"
        await kubelet.end(pod)
        await plugin.node.stop()
        await until_status(probe, 500)
        await plugin.node.start()
        await until_status(probe, 200)
        with suppress(FileNotFoundError):
            (kubelet.directory / "plugins_registry" / f"{DRIVER_NAME}-reg.sock").unlink()
        await until_status(registrar, 404 if whose == "kubernetes" else 500)
