from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.blobs import Blob
from fuse_tier.errors import NotAuthorized, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.wire.bulk.format import MAX_SESSION_BLOBS
from fuse_tier.wire.bulk.sessions import UNUSED_SECONDS, Direction, Session, Sessions


def session(caller: str | None = "a", *, encrypted: bool = True) -> Session:
    return Session(caller, Direction.PUSH, (hash_bytes(b"0123"),), encrypted)


async def test_a_token_begins_its_session_once(mock_clock: MockClock) -> None:
    sessions = Sessions()
    granted = session()
    token = sessions.grant(granted)
    assert sessions.redeem(token, "a", encrypted=True) == granted
    with pytest.raises(NotAuthorized, match="was used before, has expired, or was never granted"):
        sessions.redeem(token, "a", encrypted=True)


async def test_a_node_knows_that_content_comes_until_the_last_session_has_ended(mock_clock: MockClock) -> None:
    sessions = Sessions()
    seen = [sessions.is_receiving]
    token = sessions.grant(session())
    sessions.grant(Session("a", Direction.PUSH, (hash_bytes(b"4567"),), encrypted=True))
    sessions.ended(sessions.redeem(token, "a", encrypted=True))
    seen.append(sessions.is_receiving)
    mock_clock.jump(UNUSED_SECONDS + 1)
    seen.append(sessions.is_receiving)
    sessions.grant(Session("a", Direction.PULL, (hash_bytes(b"0123"),), encrypted=True))
    seen.append(sessions.is_receiving)
    assert seen == [False, True, False, False]


async def test_a_token_that_was_not_granted_begins_nothing(mock_clock: MockClock) -> None:
    with pytest.raises(NotAuthorized):
        Sessions().redeem(bytes(32), None, encrypted=False)


async def test_a_token_expires_when_it_is_not_used(mock_clock: MockClock) -> None:
    sessions = Sessions()
    early = sessions.grant(session())
    mock_clock.jump(UNUSED_SECONDS - 1)
    late = sessions.grant(session())
    mock_clock.jump(1)
    with pytest.raises(NotAuthorized):
        sessions.redeem(early, "a", encrypted=True)
    sessions.redeem(late, "a", encrypted=True)


@pytest.mark.parametrize("thief", ["b", "", None])
async def test_a_token_is_of_no_use_to_another_node(mock_clock: MockClock, thief: str | None) -> None:
    sessions = Sessions()
    token = sessions.grant(session("a"))
    with pytest.raises(NotAuthorized, match="granted to 'a'"):
        sessions.redeem(token, thief, encrypted=True)
    with pytest.raises(NotAuthorized, match="was used before"):
        sessions.redeem(token, "a", encrypted=True)


async def test_a_session_that_was_granted_for_an_encrypted_stream_needs_one(mock_clock: MockClock) -> None:
    sessions = Sessions()
    with pytest.raises(NotAuthorized, match="granted for an encrypted stream"):
        sessions.redeem(sessions.grant(session("a")), None, encrypted=False)
    clear = session("a", encrypted=False)
    assert sessions.redeem(sessions.grant(clear), None, encrypted=False) == clear
    assert sessions.redeem(sessions.grant(clear), "a", encrypted=True) == clear


async def test_sessions_that_nobody_begins_take_no_memory_for_ever(mock_clock: MockClock) -> None:
    sessions = Sessions()
    with pytest.raises(TierUnavailable, match="waiting to begin"):
        for _ in range(100_000):
            sessions.grant(session())
    mock_clock.jump(UNUSED_SECONDS)
    sessions.grant(session())
    await trio.lowlevel.checkpoint()


async def test_however_much_sessions_are_for_those_that_wait_take_little_memory(mock_clock: MockClock) -> None:
    sessions, granted = Sessions(), []
    blobs = tuple(Blob(number.to_bytes(16), 1) for number in range(MAX_SESSION_BLOBS))
    large = Session("a", Direction.PULL, blobs, encrypted=True)
    with pytest.raises(TierUnavailable, match="waiting to begin"):
        for _ in range(100_000):
            granted.append(sessions.grant(large))
    assert len(granted) * len(blobs) <= 1 << 18
    sessions.redeem(granted[0], "a", encrypted=True)
    sessions.grant(large)
    with pytest.raises(TierUnavailable):
        sessions.grant(large)
    mock_clock.jump(UNUSED_SECONDS)
    for _ in granted:
        sessions.grant(large)
    await trio.lowlevel.checkpoint()
