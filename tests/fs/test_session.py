"""The loop that reads requests goes on whatever an operation does."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.lowlevel

from fuse_tier.fs.requests import Request
from fuse_tier.fs.session import Answer, Operation, Session
from fuse_tier.mount.device import Device
from fuse_tier.mount.messages import REPLY, REQUEST, Opcode
from tests.harness.logs import ExpectedLogs


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, Device]]:
    """What stands for /dev/fuse: whole messages there and back."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, Device(theirs.fileno())


def request(opcode: int, unique: int) -> bytes:
    return REQUEST.pack(REQUEST.size, opcode, unique, 1, 0, 0, 1, 0)


def reply(kernel: socket.socket) -> tuple[int, int]:
    """The error and the number of the next one."""
    _, code, unique = REPLY.unpack(kernel.recv(1000)[: REPLY.size])
    return -code, unique


async def test_a_defect_in_an_operation_fails_that_one_alone(
    kernel: tuple[socket.socket, Device], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("operation.failed")
    there, device = kernel

    async def break_down(request: Request, body: memoryview) -> Answer:
        raise ZeroDivisionError

    async def refuse(request: Request, body: memoryview) -> Answer:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    async def answer(request: Request, body: memoryview) -> Answer:
        await trio.lowlevel.checkpoint()
        return b"body"

    operations: dict[int, Operation] = {
        Opcode.GETATTR: break_down,
        Opcode.MKDIR: refuse,
        Opcode.STATFS: answer,
        Opcode.FORGET: break_down,  # which gets no reply, also then
    }
    session = Session(device, operations, lambda answer, request: None)
    asked = [Opcode.GETATTR, Opcode.FORGET, Opcode.MKDIR, Opcode.STATFS, Opcode.IOCTL]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.serve)
        for number, opcode in enumerate(asked, start=1):
            there.send(request(opcode, 2 * number))
        replies = {await trio.to_thread.run_sync(reply, there) for _ in range(4)}
        nursery.cancel_scope.cancel()
    assert replies == {(errno.EIO, 2), (errno.EPERM, 6), (0, 8), (errno.ENOSYS, 10)}
