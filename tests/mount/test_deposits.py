from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuse_tier.mount.deposits import Deposit, Depositor, Kind, Safe, connection_pair, listen_aside, orphan_key


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = connection_pair()
    with ours, theirs:
        yield ours, theirs


def test_a_descriptor_outlives_who_left_it(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    fd = os.memfd_create("content")
    os.write(fd, b"content")
    left = Deposit(Kind.FILE, 7, inode=1 << 40, unique=1 << 50, backing=3, writes=True)
    Depositor(theirs).leave(left, fd)
    os.close(fd)
    theirs.close()
    safe = Safe()
    assert safe.receive(ours) is False  # all that was sent, then the end
    (found, kept), *_ = safe.contents.values()
    assert found == left
    assert os.pread(kept, 10, 0) == b"content"
    assert safe.highest_backing == 3
    safe.close()


def test_what_is_taken_back_or_replaced_is_closed(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    depositor, safe = Depositor(theirs), Safe()
    reader, writer = os.pipe()
    depositor.leave(Deposit(Kind.ORPHAN, orphan_key(5), 5), writer)
    os.close(writer)
    assert safe.receive(ours) is True
    depositor.remove(orphan_key(5))
    depositor.remove(orphan_key(6))
    assert safe.receive(ours) is True
    assert safe.contents == {}
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_who_needs_the_room_can_wait_until_what_it_took_back_is_closed(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    depositor, safe = Depositor(theirs), Safe()
    reader, writer = os.pipe()
    depositor.leave(Deposit(Kind.ORPHAN, orphan_key(5), 5), writer)
    os.close(writer)
    depositor.remove(orphan_key(5))
    with ThreadPoolExecutor(1) as threads:
        settled = threads.submit(depositor.settle)
        while not settled.done():
            safe.receive(ours)
        settled.result()
    assert os.read(reader, 1) == b""
    os.close(reader)
    depositor.settle()  # nothing to wait for


def test_many_are_left_without_the_keeper_reading(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    fd = os.memfd_create("content")
    for key in range(200):
        Depositor(theirs).leave(Deposit(Kind.FILE, key), fd)
    os.close(fd)
    safe = Safe()
    safe.receive(ours)
    assert sorted(safe.contents) == list(range(200))
    safe.close()


def test_what_a_daemon_sent_last_is_overheard_by_one_after_another_until_it_is_received(tmp_path: Path) -> None:
    ours, theirs = connection_pair()
    depositor = Depositor(theirs)
    for key in (1, 2):
        with open(tmp_path / f"file-{key}", "wb") as file:
            depositor.leave(Deposit(Kind.FILE, key, inode=key), file.fileno())
    depositor.remove(1)
    theirs.close()
    with ours:
        for _ in range(2):  # the first may die before it has passed anything on
            safe = Safe()
            listen_aside(ours)
            assert not safe.overhear(ours)
            assert set(safe.contents) == {2}
            safe.close()
