"""Who has copies of what a mount is kept with: one stands in for a keeper that died, and then another."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fuse_tier.mount.table import mount_at
from fuse_tier.node.vault import Vault
from tests.fs.mounted import Mounted, Place
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def mounted(memory_path: Path, tmp_path: Path, expected_logs: ExpectedLogs) -> Iterator[Mounted]:
    expected_logs.allow("vault.stands_in")
    place = Place(memory_path, tmp_path / "fs.log", memory_path / "mnt")
    place.prepare()
    mounted = Mounted(place, keeper_socket=socket_in(memory_path))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as supervisor:
            supervisor.connect(socket_in(memory_path))
            supervisor.send(b'{"keep": true}')
            while not json.loads(supervisor.recv(1 << 16))["kept"]:
                pass
        yield mounted
    finally:
        mounted.destroy()


def socket_in(directory: Path) -> str:
    place = directory / "node.sock.mounts"
    place.mkdir(exist_ok=True)
    return os.fspath(place / "keeper")


def place_of(mounted: Mounted) -> str:
    return os.path.dirname(socket_in(mounted.path.parent))


async def until_held(*vaults: Vault) -> None:
    async def hold() -> bool:
        return all(vault.holds for vault in vaults)

    await until(hold)


def kill_keeper(mounted: Mounted) -> None:
    """And with it its daemon: the kernel sees to that."""
    mounted.process.kill()
    mounted.process.wait()


async def test_one_of_several_vaults_stands_in_and_another_when_that_one_goes(mounted: Mounted) -> None:
    vaults = [Vault(place_of(mounted)) for _ in range(2)]
    file = (mounted.path / "file").open("w+")
    file.write("before")
    file.flush()
    scopes = [trio.CancelScope() for _ in vaults]

    async def run(number: int) -> None:
        with scopes[number]:
            await vaults[number].run()

    async with trio.open_nursery() as nursery:
        for number in range(len(vaults)):
            nursery.start_soon(run, number)
        await until_held(*vaults)
        kill_keeper(mounted)

        async def one_stands_in() -> bool:
            return sum(vault.stands_in for vault in vaults) == 1

        await until(one_stands_in)
        assert mount_at(str(mounted.path)) is not None
        heir = next(number for number, vault in enumerate(vaults) if vault.stands_in)
        scopes[heir].cancel()
        other = vaults[1 - heir]

        async def the_other_does() -> bool:
            return other.stands_in == 1

        await until(the_other_does)
        await trio.to_thread.run_sync(mounted.succeed)

        async def has_the_next_ones() -> bool:
            return not other.stands_in and other.holds == 1

        await until(has_the_next_ones)

        def write_on() -> str:
            file.write(" and after")
            file.flush()
            return (mounted.path / "file").read_text()

        assert await trio.to_thread.run_sync(write_on) == "before and after"
        file.close()
        nursery.cancel_scope.cancel()


async def test_a_vault_gives_up_when_nobody_comes(mounted: Mounted, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("vault.gave_up")
    vault = Vault(place_of(mounted), patience_seconds=0.3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vault.run)
        await until_held(vault)
        kill_keeper(mounted)

        async def has_ended() -> bool:
            try:
                await trio.to_thread.run_sync(os.statvfs, mounted.path)
            except OSError:
                return True
            return False

        await until(has_ended)
        nursery.cancel_scope.cancel()


async def test_a_vault_lets_go_of_a_mount_that_ended_in_order(mounted: Mounted) -> None:
    vault = Vault(place_of(mounted))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vault.run)
        await until_held(vault)
        await trio.to_thread.run_sync(mounted.unmount)
        assert await trio.to_thread.run_sync(mounted.wait) == 0

        async def has_let_go() -> bool:
            return not vault.holds and not vault.stands_in

        await until(has_let_go)
        nursery.cancel_scope.cancel()
