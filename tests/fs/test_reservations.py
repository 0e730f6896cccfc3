"""Which files the kernel may write by itself: those that are sure to find room, and others while there is plenty."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuse_tier.fs.arranging import Arranging
from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.backing import Backings
from fuse_tier.fs.base import Parts
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.content import Content
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.link import Link
from fuse_tier.fs.nodes import ROOT, Nodes
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Request
from fuse_tier.fs.reserve import Reservations
from fuse_tier.fs.room import RoomAsker
from fuse_tier.fs.share import Share
from fuse_tier.fs.spec import MountSpec
from fuse_tier.mount.deposits import Depositor, connection_pair
from fuse_tier.mount.device import Device
from fuse_tier.mount.messages import Opcode
from tests.fs.filling import small_tmpfs
from tests.fs.mounted import IDENTITY, Place

pytestmark = pytest.mark.root

MIB = 1 << 20
ROOM = 16 * MIB


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A small tmpfs of its own, whose room nobody else takes."""
    with small_tmpfs(tmp_path / "memory", ROOM) as path:
        yield path


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves a volume, and what of it decides about room."""

    operations: Operations
    reservations: Reservations
    nodes: Nodes


@pytest.fixture
def serving(place: Place) -> Iterator[Serving]:
    """Of a volume whose files of 1 MiB are known, with a device that no file can be given to."""
    spec = MountSpec.parse(
        json.dumps(
            {
                "ram_root": place.layout.root,
                "identity": str(IDENTITY),
                "mountpoint": str(place.mountpoint),
                "worker_socket": place.socket,
                "expected_sizes": [["*.bin", MIB]],
            }
        )
    )
    keepers_end, ours = connection_pair()
    depositor = Depositor(ours)
    read_end, write_end = os.pipe()
    nodes, handles, changes = Nodes(str(place.tree), depositor, inherits=False), Handles(depositor, 0), Changes(0)
    arranging = Arranging(place.volume, nodes, changes)
    link = Link(spec, changes, handles, arranging, depositor.settle, passthrough=True)
    room = RoomAsker(nodes.root, link, depositor)
    content = Content(place.volume, place.pins, link, room)
    reservations = Reservations(spec, nodes, room)
    parts = Parts(
        nodes=nodes,
        handles=handles,
        backings=Backings(Device(read_end), enabled=True),
        changes=changes,
        content=content,
        attributes=Attributes(spec, nodes, handles, content, link),
        link=link,
        room=room,
        reservations=reservations,
        share=Share(0, str(place.tree), changes),
        arranging=arranging,
        fsync="ram",
    )
    try:
        yield Serving(Operations(parts), reservations, nodes)
    finally:
        handles.close()
        nodes.close()
        content.close()
        for end in (keepers_end, ours):
            end.close()
        for fd in (read_end, write_end):
            os.close(fd)


def known_file(serving: Serving, path: Path, content: bytes) -> os.stat_result:
    """Made in the root of the tree, and known to the kernel."""
    path.write_bytes(content)
    found = path.stat()
    serving.nodes.seen(found, ROOT, os.fsencode(path.name))
    return found


def test_files_of_unknown_size_pass_while_there_is_room_for_all_of_them_to_become_as_large_as_the_largest(
    serving: Serving, place: Place
) -> None:
    passed = 0
    for number in range(ROOM // MIB):
        last = known_file(serving, place.tree / f"{number}.bin", b"its pages are there, and more may be appended")
        passed += serving.reservations.may_pass(last, 0)
    assert ROOM // MIB // 2 < passed < ROOM // MIB
    again = (place.tree / "0.bin").stat()
    assert serving.reservations.may_pass(again, 0), "it is one of those already"
    assert not serving.reservations.may_pass(last, 0)
    serving.reservations.ended(again.st_ino)
    assert serving.reservations.may_pass(last, 0)


def test_files_that_are_likely_to_stay_small_take_no_room_from_others_however_long_they_are_open(
    serving: Serving, place: Place
) -> None:
    may_pass = serving.reservations.may_pass
    for number in range(ROOM // MIB):
        assert not may_pass(known_file(serving, place.tree / f"{number}.log", b""), 0, appends=True)
        assert not may_pass(known_file(serving, place.tree / f"{number}.db", b"is written in place"), 0)
    assert may_pass(known_file(serving, place.tree / "new", b""), 0)
    was_large = known_file(serving, place.tree / "large.bin", b"not yet, but others of its name were")
    assert may_pass(was_large, 0, appends=True)


async def test_a_file_that_could_not_be_opened_does_not_count_and_one_that_was_made_for_it_is_gone(
    serving: Serving, place: Place
) -> None:
    path = place.tree / "file"
    path.touch()
    request = Request(Opcode.LOOKUP, 2, ROOT, 0, 0, 1)
    serving.operations.lookup(ROOT, b"file", request)
    known = len(serving.nodes)
    for _ in range(2 * ROOM // MIB):
        with pytest.raises(OSError):
            await serving.operations.open(path.stat().st_ino, os.O_WRONLY, request)
        with pytest.raises(OSError):
            await serving.operations.create(ROOT, b"new", 0o644, os.O_WRONLY | os.O_EXCL, request)
        assert os.listdir(place.tree) == ["file"]
        with pytest.raises(OSError):
            await serving.operations.tmpfile(ROOT, 0o644, os.O_RDWR, request)
        assert len(serving.nodes) == known
    assert serving.reservations.may_pass(path.stat(), 0)
