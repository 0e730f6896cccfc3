"""What a node does when it has nothing else to do: huge pages for what came to rest, memory for what comes next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.ram.hugepages import huge_page_bytes
from tests.harness.cgroups import memory_group, usage
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
_WRITER = """
import sys
group, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
open(f"{group}/cgroup.procs", "w").write("0")
with open(path, "wb", buffering=0) as file:
    for number in range(size >> 20):
        file.write(number.to_bytes(4, "little") * (1 << 18))
    print("written", flush=True)
    sys.stdin.read()
"""


def save(group: str, path: Path, size: int) -> int:
    """A job of its own writes a file; gives what counted against it before the file was closed."""
    command = [sys.executable, "-S", "-c", _WRITER, group, str(path), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout and job.stdout.readline() == "written\n"
        charged = usage(group)
        job.communicate()
    assert job.returncode == 0
    return charged


@pytest.mark.skipif(not huge_page_bytes(), reason="needs a kernel with huge pages")
async def test_a_first_checkpoint_counts_against_its_job_only_until_the_node_is_at_rest(make_cluster: Any) -> None:
    cluster = await make_cluster("a", ram_size="256MiB", bucket=False, settle="50ms")
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount("default/job/0", mount)
    status = await node.status()
    if status["passthrough"] != "on" or status["tiers"][0]["huge_pages"] == "never":
        pytest.skip("needs passthrough, and a tmpfs with huge pages")
    with memory_group(200 * MIB) as group:
        assert await trio.to_thread.run_sync(save, group, mount / "weights", 64 * MIB) >= 60 * MIB
        await node.wait("default/job/0", "ram", 60)
        content = (mount / "weights").read_bytes()

        async def is_at_rest() -> bool:
            return not (await node.status())["tiers"][0]["small_pages_bytes"]

        await until(is_at_rest)
        if usage(group) >= 60 * MIB:
            pytest.skip("needs Linux 6.1, and memory for huge pages")
        assert usage(group) < 16 * MIB
        assert (mount / "weights").read_bytes() == content
        (mount / "weights").unlink()


async def test_the_next_checkpoint_is_written_into_memory_that_is_there_already(make_cluster: Any) -> None:
    cluster = await make_cluster("a", ram_size="4GiB", bucket=False, settle="50ms")
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount("default/job/0", mount)

    async def spare_bytes() -> int:
        return int((await node.status())["tiers"][0]["spare_bytes"])

    async def there_is_one() -> bool:
        return await spare_bytes() == 64 * MIB

    for step in range(1, 4):
        content = step.to_bytes(1, "little") * (64 * MIB)
        with (mount / f"step_{step}.bin").open("wb") as file:
            assert await spare_bytes() == 0, "it is this file now"
            await trio.to_thread.run_sync(file.write, content)
        await node.wait("default/job/0", "ram", 60)
        assert (mount / f"step_{step}.bin").read_bytes() == content
        await until(there_is_one)
