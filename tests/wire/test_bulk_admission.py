"""Who may move content over a bulk stream, and who gets nowhere."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from fuse_tier.errors import TierUnavailable
from fuse_tier.tiers.base import no_progress
from fuse_tier.wire.bulk.client import push
from fuse_tier.wire.bulk.sessions import Direction
from fuse_tier.wire.tls import TlsFiles
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding
from tests.wire.bulk import Server, check_alive, outcome_of, running_server, send
from tests.wire.certificates import Certificates


async def test_a_token_is_refused_the_second_time(server: Server, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    blobs = list(source.contents)
    grant = server.grant(Direction.PUSH, blobs)
    await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))
    with pytest.raises(TierUnavailable, match="does not know the session any more"):
        await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))


async def test_a_token_of_another_node_is_refused(
    secure: Server, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    blobs = list(source.contents)
    with pytest.raises(TierUnavailable, match="does not know the session"):
        await push(
            secure.grant(Direction.PUSH, blobs, certificates.a, caller="c"),
            blobs,
            source,
            no_progress,
            trio.CapacityLimiter(1),
        )
    assert secure.store.contents == {}


async def test_an_encrypted_session_is_not_begun_in_the_clear(secure: Server, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    blobs = list(source.contents)
    grant = secure.grant(Direction.PUSH, blobs, caller="a", encrypted=True)
    with pytest.raises(TierUnavailable, match="does not know the session"):
        await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))


@pytest.mark.parametrize("bad", ["expired", "intruder", "stranger"])
async def test_a_bad_certificate_gets_nowhere(
    secure: Server, certificates: Certificates, expected_logs: ExpectedLogs, bad: str
) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    tls: TlsFiles = getattr(certificates, bad)
    with pytest.raises(TierUnavailable, match=r"the transfer with .* failed"):
        await send(secure, source, tls)
    assert secure.store.contents == {}


async def test_a_server_with_a_bad_certificate_is_not_believed(
    certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")
    async with running_server(certificates.expired) as server:
        outcome = await outcome_of(partial(send, server, holding([b"0123"]), certificates.a))
    assert isinstance(outcome, TierUnavailable)
    assert "its certificate was refused" in str(outcome)


async def test_tls_to_a_server_that_has_none_fails_on_both_sides(
    server: Server, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")
    with pytest.raises(TierUnavailable):
        await send(server, holding([b"0123"]), certificates.a)
    await check_alive(server)
