from __future__ import annotations

import struct

import pytest

from fuse_tier.mount.messages import ENTRY, MOST_BYTES, REPLY, REQUEST, Opcode, resend_notification, shake_hands

PASSTHROUGH, RESEND, EXTENDED, WRITEBACK, POSIX_LOCKS = 1 << 37, 1 << 39, 1 << 30, 1 << 16, 1 << 1
ALL = (1 << 64) - 1


def init(minor: int = 45, offered: int = ALL, major: int = 7, opcode: int = Opcode.INIT) -> memoryview:
    body = struct.pack("=IIIII44x", major, minor, 131072, offered & 0xFFFFFFFF, offered >> 32 & 0xFFFFFFFF)
    return memoryview(REQUEST.pack(REQUEST.size + len(body), opcode, 2, 0, 0, 0, 0, 0) + body)


def agreed(reply: bytes) -> int:
    flags, more = (int(struct.unpack_from("=I", reply, 16 + at)[0]) for at in (12, 32))
    return flags | more << 32


def test_the_shapes_are_those_of_the_kernel() -> None:
    assert (REQUEST.size, REPLY.size, ENTRY.size) == (40, 16, 128)


def test_what_the_kernel_offers_is_taken_and_what_would_not_survive_us_is_not() -> None:
    handshake, reply = shake_hands(init(), passthrough=True)
    assert (handshake.passthrough, handshake.resends, handshake.minor) == (True, True, 45)
    assert len(reply) == struct.unpack_from("=I", reply)[0] == 16 + 64
    assert agreed(reply) & (PASSTHROUGH | RESEND | EXTENDED) == PASSTHROUGH | RESEND | EXTENDED
    assert not agreed(reply) & (WRITEBACK | POSIX_LOCKS)
    assert struct.unpack_from("=I", reply, 16 + 20)[0] == MOST_BYTES
    assert struct.unpack_from("=I", reply, 16 + 36)[0] == 1  # depth of the stack


def test_nothing_is_agreed_on_that_was_not_offered() -> None:
    handshake, reply = shake_hands(init(minor=34, offered=1 << 5 | 1 << 22), passthrough=True)
    assert (handshake.passthrough, handshake.resends) == (False, False)
    assert agreed(reply) == 1 << 5 | 1 << 22


def test_passthrough_can_be_declined() -> None:
    handshake, reply = shake_hands(init(), passthrough=False)
    assert not handshake.passthrough
    assert not agreed(reply) & PASSTHROUGH


@pytest.mark.parametrize("message", [init(minor=26), init(major=8), init(opcode=Opcode.LOOKUP)])
def test_another_protocol_is_refused(message: memoryview) -> None:
    with pytest.raises(OSError, match=r"FUSE|first request"):
        shake_hands(message, passthrough=True)


def test_the_notification_is_what_the_kernel_expects() -> None:
    assert struct.unpack("=IiQ", resend_notification()) == (16, 7, 0)
