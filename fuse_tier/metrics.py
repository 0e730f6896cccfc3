"""What a process counts and measures, and the small HTTP server from which Prometheus reads it.

One registry for the process; the functions below are the only way to change it, so that names and labels are in one
place. Labels are bounded: tiers, directions, kinds of errors, and the volumes that are mounted here. They may be
called from any thread.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import structlog
import trio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fuse_tier.config_fields import Address
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError

log = structlog.get_logger(__name__)

REGISTRY = CollectorRegistry()

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_MAX_REQUEST_BYTES = 8192
_MAX_CONNECTIONS = 32

_States = Mapping[bytes, Callable[[], bool]]

_seals = Counter("fuse_tier_seals", "Files sealed (hashed).", ["outcome"], registry=REGISTRY)
_snapshots = Counter("fuse_tier_snapshots", "Snapshots taken of volumes of this node.", registry=REGISTRY)
_snapshot_bytes = Counter("fuse_tier_snapshot_bytes", "What these snapshots hold, together.", registry=REGISTRY)
_bytes = Counter("fuse_tier_bytes", "File content moved.", ["tier", "direction"], registry=REGISTRY)
_copies = Histogram(
    "fuse_tier_copy_seconds", "One snapshot's way to one place.", ["tier"], buckets=_SECONDS, registry=REGISTRY
)
_copies_refused = Counter("fuse_tier_copies_refused", "Copies for which a peer had no room.", registry=REGISTRY)
_commits = Counter("fuse_tier_commit", "Snapshots made visible.", ["tier"], registry=REGISTRY)
_restores = Histogram("fuse_tier_restore_seconds", "One volume's restore.", buckets=_SECONDS, registry=REGISTRY)
_goodput_lost = Counter(
    "fuse_tier_goodput_lost_seconds",
    "Time in which a job saved, or waited for its files: what it cannot have trained in if it waits for both.",
    ["identity", "cause"],
    registry=REGISTRY,
)
_node_operations = Histogram(
    "node_operations_seconds",
    "What a node does for a framework that speaks the file protocol, by the names of the replicator before this one.",
    ["method_name", "framework", "grpc_status_code"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_errors = Counter("fuse_tier_errors", "What went wrong; the log says what.", ["kind"], registry=REGISTRY)
_bulk_bytes = Counter(
    "fuse_tier_bulk_bytes", "Content moved over bulk streams with peers.", ["direction"], registry=REGISTRY
)
_scrubbed = Counter("fuse_tier_scrubbed_bytes", "Content that the slow scrub has read.", registry=REGISTRY)
_scrub_damaged = Counter("fuse_tier_scrub_damaged", "Files that it found to be damaged.", registry=REGISTRY)
_queue = Gauge("fuse_tier_queue_length", "Copies waiting or under way.", registry=REGISTRY)
_ram_capacity = Gauge("fuse_tier_ram_capacity_bytes", "Size of this node's RAM tier.", registry=REGISTRY)
_ram_free = Gauge("fuse_tier_ram_free_bytes", "Room in this node's RAM tier.", registry=REGISTRY)
_unwell = Gauge("fuse_tier_volumes_unwell", "Pods' volumes that did not answer last.", registry=REGISTRY)
_given_up = Counter("fuse_tier_ram_given_up_bytes", "Freed because room was short.", registry=REGISTRY)
_backups = Counter("fuse_tier_backups", "Snapshots on their way to the bucket.", ["outcome"], registry=REGISTRY)
_unreserved = Counter(
    "fuse_tier_unreserved_bytes",
    "Memory that jobs were the first to touch: it counts against their limits.",
    registry=REGISTRY,
)
_bucket_requests = Counter(
    "fuse_tier_bucket_requests", "Answers that the bucket gave.", ["method", "status"], registry=REGISTRY
)
_bucket_retries = Counter("fuse_tier_bucket_retries", "Requests to the bucket that were repeated.", registry=REGISTRY)
_bucket_hedges = Counter(
    "fuse_tier_bucket_hedges", "Reads from the bucket that got a second request, being slow.", registry=REGISTRY
)
_rejected = Counter("fuse_tier_rejected_connections", "Connections turned away.", ["reason"], registry=REGISTRY)


class _Ages(Collector):
    """Ages as of the scrape: a copy that nobody renews must be seen to grow old."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._created_ns: dict[tuple[str, ...], int] = {}

    def note(self, *labels: str, created_ns: int) -> None:
        self._created_ns[labels] = created_ns

    def replace(self, created_ns: Mapping[tuple[str, ...], int]) -> None:
        self._created_ns = dict(created_ns)

    def forget(self, *beginning: str) -> None:
        for key in [key for key in list(self._created_ns) if key[: len(beginning)] == beginning]:
            self._created_ns.pop(key, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        now_ns = time.time_ns()
        for key, created_ns in sorted(self._created_ns.copy().items()):
            family.add_metric(key, max(0, now_ns - created_ns) / 1e9)
        yield family


_ages = _Ages(
    "fuse_tier_durable_snapshot_age_seconds",
    "Time since the newest snapshot that a tier holds of a volume was taken.",
    *("identity", "tier"),
)
_checkpoints = _Ages(
    "fuse_tier_checkpoint_age_seconds",
    "Time since the newest checkpoint of a job that is complete on a tier was taken.",
    *("job", "tier"),
)
REGISTRY.register(_ages)
REGISTRY.register(_checkpoints)


def sealed(count: int = 1, outcome: str = "sealed") -> None:
    """Files were sealed; ``outcome`` is ``sealed`` or ``unchanged``."""
    _seals.labels(outcome).inc(count)


def snapshot_taken(size: int) -> None:
    """A snapshot of a volume of this node was taken, of ``size`` bytes."""
    _snapshots.inc()
    _snapshot_bytes.inc(size)


def bytes_moved(tier: str, direction: str, count: int) -> None:
    """File content went to a tier (``out``) or came from it (``in``)."""
    _bytes.labels(tier, direction).inc(count)


def copied(tier: str, seconds: float) -> None:
    """A snapshot's copy to a place of a tier was complete ``seconds`` after it was begun."""
    _copies.labels(tier).observe(seconds)


def copy_refused() -> None:
    """A peer had no room for a copy; another was asked."""
    _copies_refused.inc()


def committed(tier: str) -> None:
    """A snapshot became visible on a tier."""
    _commits.labels(tier).inc()


def restored(seconds: float) -> None:
    """A volume was restored."""
    _restores.observe(seconds)


def goodput_lost(identity: str, cause: str, seconds: float) -> None:
    """A volume's job was ``saving``, ``held`` back while its tree was read, or ``restoring``, for so long."""
    _goodput_lost.labels(identity, cause).inc(max(0.0, seconds))


@contextmanager
def node_operation(method: str, framework: str) -> Iterator[None]:
    """Around one operation for a framework; ``method`` is one of the names that dashboards know."""
    started, code = time.monotonic(), "UNKNOWN"
    try:
        yield
        code = "OK"
    finally:
        node_operated(method, framework, time.monotonic() - started, code)


def node_operated(method: str, framework: str, seconds: float, code: str = "OK") -> None:
    """One operation for a framework is over."""
    _node_operations.labels(method, framework, code).observe(seconds)


def error(kind: str) -> None:
    """Something went wrong and was logged; ``kind`` is the work that it was, such as ``snapshot`` or ``copy``."""
    _errors.labels(kind).inc()


def bulk_moved(direction: str, size: int) -> None:
    """Bulk streams with peers have moved content: ``in`` or ``out``, for whomever."""
    _bulk_bytes.labels(direction).inc(size)


def scrubbed(size: int) -> None:
    """So many bytes of the RAM tier were read again."""
    _scrubbed.inc(size)


def scrub_found_damage() -> None:
    """Content of the RAM tier was not what its name says."""
    _scrub_damaged.inc()


def queue_length(copies: int) -> None:
    """So many copies are waiting or under way."""
    _queue.set(copies)


def durable(identity: str, tier: str, created_ns: int) -> None:
    """The newest snapshot that ``tier`` holds of a volume was taken at this time (nanoseconds since 1970)."""
    _ages.note(identity, tier, created_ns=created_ns)


def forget_volume(identity: str) -> None:
    """The volume is none of this node's any more: its age is not our matter."""
    _ages.forget(identity)
    for cause in ("saving", "held", "restoring"):
        with suppress(KeyError):
            _goodput_lost.remove(identity, cause)


def given_up(size: int) -> None:
    """So many bytes of the RAM tier were given up because room was short."""
    _given_up.inc(size)


def backed_up(outcome: str) -> None:
    """A snapshot's way to the bucket: ``done``, ``failed`` (tried again), or ``superseded`` before it was begun."""
    _backups.labels(outcome).inc()


def checkpoints_complete(created_ns: Mapping[tuple[str, str], int]) -> None:
    """When the newest complete checkpoint of each job, on each tier, was taken; of others nothing is told any more.

    Of the bucket one node tells, of RAM the coordinator. A time that is not known (0) is left out.
    """
    _checkpoints.replace({key: at for key, at in created_ns.items() if at})


def unwell(count: int) -> None:
    """So many published volumes do not answer."""
    _unwell.set(count)


def unreserved(size: int) -> None:
    """A job was the first to touch so many bytes of the RAM tier: they count against its memory limit."""
    _unreserved.inc(size)


def ram(capacity_bytes: int, free_bytes: int) -> None:
    """How large the RAM tier is, and how much of it is free."""
    _ram_capacity.set(capacity_bytes)
    _ram_free.set(free_bytes)


def bucket_answered(method: str, status: int) -> None:
    """The bucket answered a request."""
    _bucket_requests.labels(method, str(status)).inc()


def bucket_retried() -> None:
    """A request to the bucket failed, and is repeated."""
    _bucket_retries.inc()


def bucket_hedged() -> None:
    """A read from the bucket brought nothing for a while: a second one is made beside it."""
    _bucket_hedges.inc()


def connection_rejected(reason: str) -> None:
    """Somebody was turned away; ``reason`` is one of few words, such as ``certificate`` or ``cluster``."""
    _rejected.labels(reason).inc()


async def serve(
    address: Address,
    healthy: Callable[[], bool] = lambda: True,
    *,
    ready: Callable[[], bool] | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers ``GET /metrics``, ``/healthz`` (503 unless ``healthy()``) and ``/readyz`` (likewise) until cancelled.

    Reports the port as started. Raises ConfigError when the address cannot be listened on. A request that is too
    long or too slow, and a connection too many, are cut off; nobody's request takes anybody else's down.
    """
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as cause:
        reason = "the port is already in use" if cause.errno == errno.EADDRINUSE else cause.strerror or str(cause)
        raise ConfigError(f"cannot listen on {address} (metrics): {reason}: choose another address") from cause
    places = trio.CapacityLimiter(_MAX_CONNECTIONS)
    states = {b"/healthz": healthy, b"/readyz": ready or healthy}
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, partial(_answer_one, states, places), listeners))
        task_status.started(listeners[0].socket.getsockname()[1])


async def _answer_one(states: _States, places: trio.CapacityLimiter, stream: trio.SocketStream) -> None:
    try:
        places.acquire_nowait()
    except trio.WouldBlock:
        return
    try:
        with trio.move_on_after(Deadline.METRICS_REQUEST):
            await stream.send_all(_response(await _request_line(stream), states))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("metrics.reader_gone")
    except Exception:
        log.exception("metrics.request_failed")
    finally:
        places.release()


async def _request_line(stream: trio.SocketStream) -> bytes:
    """The first line, once the whole head has come; empty if it never does."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = await stream.receive_some(_MAX_REQUEST_BYTES)
        head += received
        if not received or len(head) > _MAX_REQUEST_BYTES:
            return b""
    return head.partition(b"\r\n")[0]


def _response(request_line: bytes, states: _States) -> bytes:
    method, _, rest = request_line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    kind, allowed = "text/plain; charset=utf-8", ""
    if not path.startswith(b"/"):
        status, body = "400 Bad Request", b"this is no request that can be answered here\n"
    elif path != b"/metrics" and path not in states:
        status, body = "404 Not Found", b"there are /metrics, /healthz and /readyz\n"
    elif method not in (b"GET", b"HEAD"):
        status, body, allowed = "405 Method Not Allowed", b"only GET is answered here\n", "Allow: GET, HEAD\r\n"
    elif path == b"/metrics":
        status, body, kind = "200 OK", generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    elif states[path]():
        status, body = "200 OK", b"ok\n"
    else:
        status, body = "503 Service Unavailable", b"not ready\n"
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{allowed}Connection: close\r\n"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + (b"" if method == b"HEAD" else body)
