"""Whose container asks, by what the kernel says of groups, and who is held at its first look."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import TierRefused
from fuse_tier.fs.containers import Containers, pod_of
from fuse_tier.fs.lives import Lives
from fuse_tier.fs.nodes import ROOT
from fuse_tier.fs.requests import Request
from fuse_tier.identity import Identity
from fuse_tier.mount.messages import Opcode
from fuse_tier.ram import lives
from fuse_tier.ram.layout import Layout, VolumeLayout
from tests.harness.logs import ExpectedLogs

UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
OTHER = "ffffffff-4e5f-6071-8293-a4b5c6d7e8f9"
FIRST, SECOND, BESIDE = "1" * 64, "2" * 64, "3" * 64


def test_a_pod_is_known_by_where_kubelet_has_its_volume() -> None:
    assert pod_of(f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/ckpt/mount") == UID
    assert pod_of("/ckpt") is None
    assert pod_of(f"/pods/{UID[:-1]}/volumes/x") is None


@pytest.mark.parametrize(
    ("groups", "container"),
    [
        (f"0::/kubepods/burstable/pod{UID}/{FIRST}\n", FIRST),
        (
            "0::/kubepods.slice/kubepods-burstable.slice/"
            f"kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-containerd-{FIRST}.scope\n",
            FIRST,
        ),
        (f"0::/../../kubepods-pod{UID.replace('-', '_')}.slice/crio-{FIRST}.scope/inner/{SECOND}\n", FIRST),
        (f"5:pids:/\n4:memory:/kubepods/pod{UID}/{FIRST}\n0::/\n", FIRST),
        (f"0::/kubepods/burstable/pod{OTHER}/{FIRST}\n", None),
        (f"0::/kubepods/burstable/pod{UID}\n1:name=x:/kubepods/pod{OTHER}/{FIRST}\n", None),
        ("0::/system.slice/kubelet.service\n", None),
        ("", None),
    ],
)
def test_a_container_is_known_by_its_group_however_runtimes_name_it(groups: str, container: str | None) -> None:
    assert Containers(UID).container_in(groups) == container


def test_a_process_that_cannot_be_seen_is_in_no_container() -> None:
    containers = Containers(UID)
    assert containers.container_of(0) is None
    assert containers.container_of(os.getpid()) is None
    assert not containers.any_lives([FIRST])


@dataclass
class Known(Containers):
    """Containers by process number, in the place of what the kernel says."""

    of: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(UID)

    def container_of(self, pid: int) -> str | None:
        return self.of.get(pid)

    def any_lives(self, containers: object) -> bool:
        return bool(set(containers) & set(self.of.values()))  # type: ignore[call-overload]


@dataclass
class World:
    volume: VolumeLayout
    nursery: trio.Nursery
    containers: Known = field(default_factory=Known)
    asked: int = 0
    refuses: bool = False

    def lives(self) -> Lives:
        """As a daemon makes it at its start."""
        made = Lives(self.volume, self.containers, lives.read(self.volume) or {}, self.begin_again)
        self.nursery.start_soon(made.run)
        return made

    async def begin_again(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.refuses:
            raise TierRefused("no step of it is complete")


@pytest.fixture
def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    volume = Layout(str(tmp_path)).volume(Identity("default", "llama", "0"))
    os.makedirs(volume.root)
    lives.begin(volume)
    return World(volume, nursery, Known({1: FIRST}))


def request(pid: int, opcode: Opcode = Opcode.LOOKUP, node: int = ROOT) -> Request:
    return Request(opcode, 1, node, 0, 0, pid)


def opening(flags: int = os.O_RDONLY) -> memoryview:
    """What stands in a request to open something."""
    return memoryview(struct.pack("=II", flags, 0))


async def goes_on(held: Lives, asked: Request, flags: int = os.O_RDONLY) -> None:
    if not held.admits(asked, opening(flags)):
        await held.admit(asked)
    assert held.admits(asked, opening(flags))


async def test_the_first_look_after_the_savers_end_begins_again_once_whatever_daemon_hears_it(world: World) -> None:
    held = world.lives()
    await goes_on(held, request(1))
    await goes_on(held, request(1, Opcode.MKDIR))
    world.containers.of = {2: SECOND}
    assert held.admits(request(2, Opcode.LOOKUP, node=77), opening()), "below the root nobody is held"
    assert held.admits(request(99), opening()), "nor who is in no container of the pod"
    another = world.lives()
    assert not another.admits(request(2), opening())
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(another.admit, request(2))
    assert world.asked == 1
    await goes_on(world.lives(), request(2))
    assert world.asked == 1


async def test_who_comes_beside_a_saver_or_after_one_that_saved_nothing_is_let_in(world: World) -> None:
    held = world.lives()
    await goes_on(held, request(1))
    await goes_on(held, request(1, Opcode.UNLINK))
    world.containers.of = {2: SECOND}  # the first was an init container, or one that tidies up
    await goes_on(held, request(2))
    await goes_on(held, request(2, Opcode.RENAME, node=77))
    world.containers.of[3] = BESIDE
    await goes_on(held, request(3))
    del world.containers.of[3]
    world.containers.of[4] = "4" * 64
    await goes_on(held, request(4))
    assert world.asked == 0


async def test_who_cannot_be_given_a_step_is_refused_until_it_can(world: World, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow(r"container\.not_admitted")
    held = world.lives()
    await goes_on(held, request(1, Opcode.CREATE))
    world.containers.of, world.refuses = {2: SECOND}, True
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            await held.admit(request(2))
    world.refuses = False
    await goes_on(held, request(2))
    assert world.asked == 3


@pytest.mark.parametrize(
    ("opcode", "flags"),
    [
        (Opcode.OPEN, os.O_WRONLY | os.O_APPEND),
        (Opcode.OPEN, os.O_RDWR),
        (Opcode.CREATE, os.O_WRONLY),
        (Opcode.MKDIR, 0),
    ],
)
async def test_nothing_is_moved_under_a_sidecar_that_writes_below_the_root(
    world: World, opcode: Opcode, flags: int
) -> None:
    held = world.lives()
    await goes_on(held, request(1, Opcode.MKDIR))
    world.containers.of[3] = BESIDE
    await goes_on(held, request(3))
    await goes_on(held, request(3, opcode, node=77), flags)
    world.containers.of = {2: SECOND, 3: BESIDE}
    await goes_on(world.lives(), request(2))
    assert world.asked == 0
    world.containers.of = {4: "4" * 64}  # all of the pod are started again
    await goes_on(world.lives(), request(4))
    assert world.asked == 1


async def test_who_only_reads_below_the_root_keeps_nobody_from_beginning_again(world: World) -> None:
    held = world.lives()
    await goes_on(held, request(1, Opcode.MKDIR))
    world.containers.of[3] = BESIDE
    await goes_on(held, request(3))
    await goes_on(held, request(3, Opcode.OPEN, node=77))
    world.containers.of = {2: SECOND, 3: BESIDE}
    await goes_on(held, request(2))
    assert world.asked == 1


async def test_the_end_of_an_init_container_that_wrote_below_the_root_begins_nothing(world: World) -> None:
    await goes_on(world.lives(), request(1))
    await goes_on(world.lives(), request(1, Opcode.OPEN, node=77), os.O_WRONLY)
    world.containers.of = {2: SECOND}
    await goes_on(world.lives(), request(2))
    assert world.asked == 0


async def test_what_a_version_noted_that_told_of_the_root_alone_is_understood(world: World) -> None:
    Path(world.volume.lives).write_text(json.dumps([FIRST, SECOND]))
    assert lives.read(world.volume) == {FIRST: True, SECOND: True}
