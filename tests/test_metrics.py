"""What Prometheus gets, over a real connection, and what those get who ask for something else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from fuse_tier import metrics
from fuse_tier.config import Address
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError


class Health:
    """What the process says of itself."""

    good = True

    def __call__(self) -> bool:
        return self.good


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def port(health: Health, nursery: trio.Nursery) -> AsyncIterator[int]:
    async def serve(task_status: trio.TaskStatus[int]) -> None:
        await metrics.serve(Address("127.0.0.1", 0), health, task_status=task_status)

    number: int = await nursery.start(serve)
    yield number
    nursery.cancel_scope.cancel()


async def exchange(port: int, request: bytes) -> tuple[str, bytes]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        return await answer(stream)


async def answer(stream: trio.SocketStream) -> tuple[str, bytes]:
    received = b""
    with trio.fail_after(30):
        while part := await stream.receive_some():
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert f"Content-Length: {len(body)}" in lines or lines[0].endswith("200 OK")
    return lines[0], body


async def scrape(port: int) -> dict[tuple[str, frozenset[str]], float]:
    status, body = await exchange(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def test_what_was_counted_is_read(port: int) -> None:
    before = await scrape(port)
    metrics.snapshot_taken(1000)
    metrics.sealed(3)
    metrics.bytes_moved("peer", "out", 500)
    metrics.copied("peer", 0.25)
    metrics.committed("peer")
    metrics.restored(1.5)
    metrics.error("copy")
    metrics.queue_length(7)
    metrics.ram(100, 40)
    metrics.connection_rejected("cluster")
    metrics.bucket_answered("GET", 206)
    metrics.bucket_retried()
    metrics.bucket_hedged()
    metrics.scrubbed(4096)
    metrics.bulk_moved("out", 123)
    metrics.scrub_found_damage()
    metrics.backed_up("superseded")
    after = await scrape(port)
    for name, labels, change in [
        ("fuse_tier_snapshots_total", (), 1),
        ("fuse_tier_snapshot_bytes_total", (), 1000),
        ("fuse_tier_seals_total", ("sealed",), 3),
        ("fuse_tier_bytes_total", ("peer", "out"), 500),
        ("fuse_tier_copy_seconds_count", ("peer",), 1),
        ("fuse_tier_commit_total", ("peer",), 1),
        ("fuse_tier_restore_seconds_sum", (), 1.5),
        ("fuse_tier_errors_total", ("copy",), 1),
        ("fuse_tier_rejected_connections_total", ("cluster",), 1),
        ("fuse_tier_bucket_requests_total", ("GET", "206"), 1),
        ("fuse_tier_bucket_retries_total", (), 1),
        ("fuse_tier_bucket_hedges_total", (), 1),
        ("fuse_tier_scrubbed_bytes_total", (), 4096),
        ("fuse_tier_bulk_bytes_total", ("out",), 123),
        ("fuse_tier_scrub_damaged_total", (), 1),
        ("fuse_tier_backups_total", ("superseded",), 1),
    ]:
        key = (name, frozenset(labels))
        assert after[key] - before.get(key, 0) == change, name
    assert after["fuse_tier_queue_length", frozenset()] == 7
    assert after["fuse_tier_ram_capacity_bytes", frozenset()] == 100
    assert after["fuse_tier_ram_free_bytes", frozenset()] == 40


async def test_a_complete_checkpoint_grows_old_on_each_tier_until_nobody_tells_of_it(port: int) -> None:
    key = ("fuse_tier_checkpoint_age_seconds", frozenset({"ns/w", "bucket"}))
    of_ram = ("fuse_tier_checkpoint_age_seconds", frozenset({"ns/w", "ram"}))
    metrics.checkpoints_complete({("ns/w", "bucket"): time.time_ns() - 3600 * 10**9, ("ns/w", "ram"): 0})
    assert (await scrape(port))[key] >= 3600
    assert of_ram not in await scrape(port)  # when it was taken is not known
    metrics.checkpoints_complete({})
    assert key not in await scrape(port)


async def test_time_that_a_job_lost_adds_up_until_its_volume_is_forgotten(port: int) -> None:
    key = ("fuse_tier_goodput_lost_seconds_total", frozenset({"ns/w/0", "saving"}))
    metrics.goodput_lost("ns/w/0", "saving", 2.0)
    metrics.goodput_lost("ns/w/0", "saving", 1.5)
    metrics.goodput_lost("ns/w/0", "saving", -1.0)
    assert (await scrape(port))[key] == 3.5
    metrics.forget_volume("ns/w/0")
    assert key not in await scrape(port)


async def test_a_copy_grows_old_until_it_is_renewed_or_its_volume_is_forgotten(port: int) -> None:
    key = ("fuse_tier_durable_snapshot_age_seconds", frozenset({"ns/w/0", "bucket"}))
    metrics.durable("ns/w/0", "bucket", time.time_ns() - 3600 * 10**9)
    assert (await scrape(port))[key] >= 3600
    metrics.durable("ns/w/0", "bucket", time.time_ns())
    assert (await scrape(port))[key] < 3600
    metrics.forget_volume("ns/w/0")
    assert key not in await scrape(port)


async def test_health_is_what_the_process_says_it_is(port: int, health: Health) -> None:
    request = b"GET /healthz?verbose=1 HTTP/1.1\r\n\r\n"
    assert await exchange(port, request) == ("HTTP/1.1 200 OK", b"ok\n")
    health.good = False
    assert await exchange(port, request) == ("HTTP/1.1 503 Service Unavailable", b"not ready\n")


async def test_who_is_well_may_not_be_ready_yet() -> None:
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(metrics.serve, Address("127.0.0.1", 0), ready=ready.is_set))
        assert (await exchange(port, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
        assert (await exchange(port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 503 Service Unavailable"
        ready.set()
        assert (await exchange(port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000, "400 Bad Request"),
    ],
)
async def test_other_requests_are_told_so(port: int, request_text: bytes, status: str) -> None:
    assert (await exchange(port, request_text))[0] == f"HTTP/1.1 {status}"


async def test_a_head_has_no_body(port: int) -> None:
    assert await exchange(port, b"HEAD /metrics HTTP/1.1\r\n\r\n") == ("HTTP/1.1 200 OK", b"")


async def test_a_request_may_come_in_pieces(port: int) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for piece in (b"GET /hea", b"lthz HTTP/1.1\r\n\r", b"\n"):
            await stream.send_all(piece)
        assert (await answer(stream))[0] == "HTTP/1.1 200 OK"


async def test_readers_that_go_away_or_say_nothing_keep_nobody_from_reading(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "METRICS_REQUEST", 0.2)
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(40)]
    gone = await trio.open_tcp_stream("127.0.0.1", port)
    await gone.send_all(b"GET")
    await gone.aclose()
    for stream in silent:
        with trio.fail_after(30):
            assert await stream.receive_some() == b""
        await stream.aclose()
    assert await exchange(port, b"GET /healthz HTTP/1.1\r\n\r\n") == ("HTTP/1.1 200 OK", b"ok\n")


async def test_an_address_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(metrics\): the port is already in use"
    ):
        await metrics.serve(Address("127.0.0.1", port))
