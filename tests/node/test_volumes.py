from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import ConfigError, FuseTierError, IdentityBusy, MountError
from fuse_tier.fs.version import code_version
from fuse_tier.identity import Identity
from fuse_tier.mount.table import is_inside, mount_at, read_mounts
from fuse_tier.node.settings import DaemonSettings
from fuse_tier.node.supervisor import Programs
from fuse_tier.node.volumes import Volumes
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import is_running, make_volume

pytestmark = pytest.mark.fuse

ONE = Identity("default", "job", "1")
TWO = Identity("default", "job", "2")


@asynccontextmanager
async def node_with(ram: Path, command: Sequence[str] = Programs().daemon) -> AsyncIterator[Volumes]:
    """The volumes of a node without a worker; what is still mounted at the end is ended in order."""
    for identity in (ONE, TWO):
        make_volume(str(ram), identity)
    settings = DaemonSettings(command, str(ram), str(ram / "nobody.volumes"), "ram")
    async with trio.open_nursery() as nursery:
        volumes = Volumes(settings, nursery)
        yield volumes
        await volumes.end_all(trio.Event())
        nursery.cancel_scope.cancel()


@pytest.fixture
async def volumes(memory_path: Path) -> AsyncIterator[Volumes]:
    async with node_with(memory_path) as found:
        yield found


@pytest.fixture
def other_mountpoint(place: Path) -> Path:
    directory = place / "other"
    directory.mkdir()
    return directory


async def mount(volumes: Volumes, at: Path, identity: Identity = ONE) -> None:
    await volumes.mount(identity, str(at), read_only=False)


def states(volumes: Volumes) -> list[tuple[str, str]]:
    return [(listed["mountpoint"], listed["state"]) for listed in volumes.listing()]


async def until_states(volumes: Volumes, expected: list[tuple[str, str]]) -> None:
    async def are_so() -> bool:
        return states(volumes) == expected

    await until(are_so)


async def test_a_mounted_volume_is_there_at_once_and_is_listed(volumes: Volumes, mountpoint: Path) -> None:
    await mount(volumes, mountpoint)
    (mountpoint / "file").write_text("written")
    (listed,) = volumes.listing()
    assert is_running(listed.pop("pid"))
    assert is_running(listed.pop("daemon"))
    assert listed.pop("passthrough") is (listed.pop("plain_reason") == "")
    assert listed == {
        "identity": "default/job/1",
        "mountpoint": str(mountpoint),
        "restarts": 0,
        "version": code_version(),
        "state": "serving",
        "reason": "",
    }


async def test_an_unmounted_volume_leaves_no_mount_and_no_process_and_its_files_come_back(
    volumes: Volumes, mountpoint: Path, other_mountpoint: Path
) -> None:
    await mount(volumes, mountpoint)
    (mountpoint / "file").write_text("written")
    pid = volumes.listing()[0]["pid"]
    assert await volumes.unmount(str(mountpoint)) == ONE
    assert mount_at(str(mountpoint)) is None
    assert not is_running(pid)
    assert volumes.listing() == []
    await mount(volumes, other_mountpoint)
    assert (other_mountpoint / "file").read_text() == "written"


async def test_a_read_only_volume_is_read_only(volumes: Volumes, mountpoint: Path) -> None:
    await volumes.mount(ONE, str(mountpoint), read_only=True)
    with pytest.raises(OSError) as caught:
        (mountpoint / "file").touch()
    assert caught.value.errno == errno.EROFS


async def test_a_mountpoint_is_the_same_by_every_name_that_it_has(
    volumes: Volumes, place: Path, mountpoint: Path
) -> None:
    (place / "link").symlink_to(place)
    await mount(volumes, place / "link" / "mnt")
    assert states(volumes) == [(str(mountpoint), "serving")]
    assert await volumes.unmount(f"{mountpoint}/../mnt/") == ONE


async def test_two_volumes_on_one_mountpoint_are_refused(volumes: Volumes, mountpoint: Path) -> None:
    await mount(volumes, mountpoint)
    with pytest.raises(MountError, match=f"default/job/1 is mounted at {mountpoint} already"):
        await mount(volumes, mountpoint, TWO)
    assert states(volumes) == [(str(mountpoint), "serving")]


async def test_one_volume_on_two_mountpoints_is_refused_and_the_first_is_named(
    volumes: Volumes, mountpoint: Path, other_mountpoint: Path
) -> None:
    await mount(volumes, mountpoint)
    with pytest.raises(IdentityBusy) as caught:
        await mount(volumes, other_mountpoint)
    assert str(caught.value) == (
        f"default/job/1 is mounted on this node already, at {mountpoint}: "
        f"end that with `fuse-tier unmount {mountpoint}`"
    )
    assert mount_at(str(other_mountpoint)) is None


async def test_of_calls_at_the_same_time_one_wins(volumes: Volumes, mountpoint: Path, other_mountpoint: Path) -> None:
    outcomes: list[str] = []

    async def attempt(identity: Identity, at: Path) -> None:
        try:
            await mount(volumes, at, identity)
            outcomes.append("mounted")
        except FuseTierError as error:
            outcomes.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(attempt, ONE, mountpoint)
            nursery.start_soon(attempt, ONE, other_mountpoint)
            nursery.start_soon(attempt, TWO, mountpoint)
    assert outcomes.count("mounted") in (1, 2)  # two if one took this mountpoint and the other the other
    assert len(outcomes) == 6
    assert len([found for found in read_mounts() if is_inside(found.path, str(mountpoint.parent))]) == outcomes.count(
        "mounted"
    )


async def test_a_mountpoint_that_cannot_be_used_is_refused_by_its_name(volumes: Volumes, place: Path) -> None:
    with pytest.raises(MountError, match=f"mountpoint {place}/missing does not exist"):
        await mount(volumes, place / "missing")
    assert volumes.listing() == []


async def test_the_ram_tier_is_no_mountpoint(volumes: Volumes, memory_path: Path) -> None:
    with pytest.raises(MountError, match=f"lies inside the RAM tier {memory_path}"):
        await mount(volumes, memory_path / "volumes")


async def test_a_volume_without_files_is_refused_by_its_daemon(volumes: Volumes, mountpoint: Path) -> None:
    with pytest.raises(MountError, match="default/job/3 has no tree"):
        await mount(volumes, mountpoint, Identity("default", "job", "3"))
    assert volumes.listing() == []
    await mount(volumes, mountpoint)


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("raise SystemExit(3)", MountError, "could not be mounted: the keeper ended with status 3: see its log"),
        ("""print('{"error": "no luck"}')""", MountError, "could not be mounted: no luck"),
        ("""print('{"error": {"type": "ConfigError", "message": "nonsense"}}')""", ConfigError, "nonsense"),
        ("""print('{"error": {"type": "OSError", "message": "odd"}}')""", MountError, "could not be mounted: odd"),
        ("""print('{"serving": true}')""", MountError, "the mount table shows nothing of ours"),
        ("print('hello')", FuseTierError, "printed b'hello', which nobody understands"),
    ],
)
async def test_a_daemon_that_does_not_serve_is_reported_and_leaves_nothing(
    memory_path: Path, mountpoint: Path, program: str, kind: type[Exception], message: str
) -> None:
    async with node_with(memory_path, [sys.executable, "-c", program]) as volumes:
        with pytest.raises(kind, match=message):
            await mount(volumes, mountpoint)
        assert volumes.listing() == []
        assert mount_at(str(mountpoint)) is None


async def test_a_mount_that_nobody_waits_for_any_more_is_taken_back(memory_path: Path, mountpoint: Path) -> None:
    pid_file = memory_path / "pid"
    program = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"

    async def has_started() -> bool:
        return pid_file.exists() and pid_file.read_text() != ""

    async with node_with(memory_path, [sys.executable, "-c", program]) as volumes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount, volumes, mountpoint)
            await until(has_started)
            nursery.cancel_scope.cancel()
        assert not is_running(int(pid_file.read_text()))
        assert volumes.listing() == []


async def test_the_end_of_all_does_not_wait_for_a_mount_that_is_being_taken_back(
    memory_path: Path, mountpoint: Path
) -> None:
    pid_file = memory_path / "pid"
    program = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"

    async def has_started() -> bool:
        return pid_file.exists() and pid_file.read_text() != ""

    async with node_with(memory_path, [sys.executable, "-c", program]) as volumes, trio.open_nursery() as nursery:
        nursery.start_soon(mount, volumes, mountpoint)
        await until(has_started)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            # A daemon that does not end in time would be an error in the log.
            await volumes.end_all(trio.Event())
        assert volumes.listing() == []


async def test_what_fusermount3_ends_is_noticed(volumes: Volumes, mountpoint: Path) -> None:
    await mount(volumes, mountpoint)
    await trio.run_process(["fusermount3", "-u", str(mountpoint)])
    await until_states(volumes, [])
    await mount(volumes, mountpoint)


async def test_the_mount_of_a_daemon_that_died_stays_dead_in_place_until_it_is_unmounted(
    volumes: Volumes, mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed")
    await mount(volumes, mountpoint)
    (mountpoint / "file").write_text("written")
    os.kill(volumes.listing()[0]["pid"], signal.SIGKILL)
    await until_states(volumes, [(str(mountpoint), "failed")])
    assert volumes.listing()[0]["reason"] == (
        "its keeper was ended by SIGKILL: every access answers ENOTCONN until it is unmounted"
    )
    with pytest.raises(OSError) as caught:
        (mountpoint / "more").touch()
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(MountError, match=f"mountpoint {mountpoint} holds the dead mount of default/job/1"):
        await mount(volumes, mountpoint, TWO)
    assert await volumes.unmount(str(mountpoint)) == ONE
    await mount(volumes, mountpoint)
    assert (mountpoint / "file").read_text() == "written"


async def test_a_dead_mount_can_be_taken_away_while_a_job_has_files_open_in_it(
    volumes: Volumes, mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed")
    await mount(volumes, mountpoint)
    held = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    os.kill(volumes.listing()[0]["pid"], signal.SIGKILL)
    await until_states(volumes, [(str(mountpoint), "failed")])
    await volumes.unmount(str(mountpoint))
    assert mount_at(str(mountpoint)) is None
    with pytest.raises(OSError, match="Transport endpoint"):
        os.fsync(held)
    os.close(held)


async def test_a_dead_mount_that_was_taken_away_by_hand_is_forgotten(
    volumes: Volumes, mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed")
    await mount(volumes, mountpoint)
    os.kill(volumes.listing()[0]["pid"], signal.SIGKILL)
    await until_states(volumes, [(str(mountpoint), "failed")])
    await trio.run_process(["fusermount3", "-u", str(mountpoint)])
    assert volumes.listing() == []
    await mount(volumes, mountpoint)


async def test_a_volume_whose_daemon_died_can_be_mounted_elsewhere(
    volumes: Volumes, mountpoint: Path, other_mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed")
    await mount(volumes, mountpoint)
    os.kill(volumes.listing()[0]["pid"], signal.SIGKILL)
    await until_states(volumes, [(str(mountpoint), "failed")])
    await mount(volumes, other_mountpoint)
    assert states(volumes) == [(str(mountpoint), "failed"), (str(other_mountpoint), "serving")]


async def test_the_death_of_one_daemon_does_not_touch_another_volume(
    volumes: Volumes, mountpoint: Path, other_mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed")
    await mount(volumes, mountpoint)
    await mount(volumes, other_mountpoint, TWO)
    os.kill(volumes.listing()[0]["pid"], signal.SIGKILL)
    await until_states(volumes, [(str(mountpoint), "failed"), (str(other_mountpoint), "serving")])
    (other_mountpoint / "file").write_text("written")


async def test_a_volume_in_use_is_not_unmounted_and_who_uses_it_is_named(volumes: Volumes, mountpoint: Path) -> None:
    await mount(volumes, mountpoint)
    async with trio.open_nursery() as nursery:
        user = await nursery.start(partial(trio.run_process, ["sleep", "1000"], cwd=str(mountpoint), check=False))
        with pytest.raises(MountError) as caught:
            await volumes.unmount(str(mountpoint))
        assert str(caught.value) == (
            f"{mountpoint} is in use: end the processes that use it, then unmount again "
            f"(in use by sleep (pid {user.pid}))"
        )
        assert states(volumes) == [(str(mountpoint), "serving")]
        user.kill()
    await volumes.unmount(str(mountpoint))


async def test_a_volume_that_was_taken_out_of_sight_is_busy_until_its_last_user_has_gone(
    volumes: Volumes, mountpoint: Path, other_mountpoint: Path
) -> None:
    await mount(volumes, mountpoint)
    held = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    await trio.run_process(["fusermount3", "-u", "-z", str(mountpoint)])
    os.write(held, b"still written")
    with pytest.raises(MountError, match=f"was taken away from {mountpoint} while it was in use, and still is"):
        await mount(volumes, mountpoint, TWO)
    with pytest.raises(IdentityBusy):
        await mount(volumes, other_mountpoint)
    os.close(held)
    await until_states(volumes, [])
    await mount(volumes, other_mountpoint)
    assert (other_mountpoint / "file").read_text() == "still written"


@pytest.mark.root
async def test_what_is_not_ours_is_not_unmounted(volumes: Volumes, mountpoint: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "stranger", str(mountpoint)], check=True)  # noqa: ASYNC221 - moments
    with pytest.raises(MountError) as caught:
        await volumes.unmount(str(mountpoint))
    assert str(caught.value) == f"no volume of this node is mounted at {mountpoint}: see `fuse-tier status`"
    assert mount_at(str(mountpoint)) is not None


async def test_the_end_of_all_takes_dead_mounts_and_mounts_in_use_too(
    memory_path: Path, mountpoint: Path, other_mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed", "volume.cut_off", r"mount\..*")
    async with node_with(memory_path) as volumes:
        await mount(volumes, mountpoint)
        await mount(volumes, other_mountpoint, TWO)
        pids = [listed["pid"] for listed in volumes.listing()]
        os.kill(pids[0], signal.SIGKILL)
        await until_states(volumes, [(str(mountpoint), "failed"), (str(other_mountpoint), "serving")])
        held = os.open(other_mountpoint / "file", os.O_RDWR | os.O_CREAT)
    assert not any(map(is_running, pids))
    assert mount_at(str(mountpoint)) is None
    assert mount_at(str(other_mountpoint)) is None
    with pytest.raises(OSError, match="Transport endpoint"):
        os.fsync(held)
    os.close(held)
