"""The listening side of bulk streams.

One task and one thread a stream, so many at most; a stream that fails takes no other down, is logged once with
its address, and leaves nothing behind. Nothing is read or written before a token has been redeemed, and who has
not shown one takes a place among strangers, none of a stream.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from contextlib import nullcontext
from functools import partial

import structlog
import trio

from fuse_tier.blobs import Sink, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, InvalidRequest, NotAuthorized
from fuse_tier.threads import run_interruptible
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Answer
from fuse_tier.wire.bulk.pacing import Link, Urgency
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.bulk.streams import HandshakeFailed, Stream, StreamBroken, StreamStalled
from fuse_tier.wire.bulk.transfer import Receipt, patience_for, receive, send_verdicts, transmit
from fuse_tier.wire.listening import listen_tcp
from fuse_tier.wire.rejections import UNFINISHED, Rejections
from fuse_tier.wire.renewal import Renewing
from fuse_tier.wire.strangers import Strangers
from fuse_tier.wire.tls import TlsFiles, server_context

log = structlog.get_logger(__name__)

MAX_STREAMS = 64
MAX_STRANGERS = 256  # who have not shown a token yet
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_RESPITE_SECONDS = 0.1


async def serve_bulk(
    address: str,
    sessions: Sessions,
    source: Source,
    sink: Sink,
    tls: TlsFiles | None,
    *,
    link: Link | None = None,
    max_streams: int = MAX_STREAMS,
    max_strangers: int = MAX_STRANGERS,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; reports the bound port as started. Raises ConfigError when it can not listen.

    Streams in the clear are taken beside encrypted ones: each session says which it needs.
    """
    context = Renewing(tls, server_context) if tls is not None else None
    server = _Server(sessions, source, sink, context, link or Link(), max_streams, max_strangers)
    with await listen_tcp(address) as listener:
        async with trio.open_nursery() as nursery:
            task_status.started(listener.getsockname()[1])
            await server.accept(listener, nursery)


class _Server:
    def __init__(
        self,
        sessions: Sessions,
        source: Source,
        sink: Sink,
        context: Renewing[ssl.SSLContext] | None,
        link: Link,
        max_streams: int,
        max_strangers: int,
    ) -> None:
        self._sessions = sessions
        self._source = source
        self._sink = sink
        self._context = context
        self._link = link
        self._slots = trio.Semaphore(max_streams)
        self._threads = trio.CapacityLimiter(max_streams)
        self._strangers = Strangers(max_strangers)
        self._letting_in = trio.CapacityLimiter(max_strangers)
        self._max_streams = max_streams
        self._refused = Rejections("bulk.stream_refused")
        self._failed = Rejections("bulk.stream_failed")

    async def accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        """Takes connections for ever."""
        while True:
            try:
                connection, peer = await listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # accept(2): errors of the new connection, which has gone
                log.warning("bulk.accept_failed", reason=error.strerror)
                await trio.sleep(_RESPITE_SECONDS)  # the backlog keeps who comes until something was freed
                continue
            accepted = socket.socket(fileno=connection.detach())
            host, address = peer[0], f"{peer[0]}:{peer[1]}"
            full = self._strangers.enter(host)
            if full is not None:
                accepted.close()
                self._refused.note("too_many", address, full)
                continue
            nursery.start_soon(self._serve, accepted, host, address)

    async def _serve(self, accepted: socket.socket, host: str, address: str) -> None:
        """Survives whatever a stream does."""
        stream: Stream | None = None
        try:
            try:
                accepted.setblocking(True)
                stream = Stream(accepted, Deadline.BULK_CONNECT)
                session = await self._let_in(stream, address)
            finally:
                self._strangers.leave(host)
            if session is not None:
                await self._work(stream, session, address)
        except StreamBroken as error:
            log.info("bulk.stream_broken", address=address, reason=str(error))  # who asked for it knows, or has ended
        except (FuseTierError, OSError) as error:
            self._failed.note("nonsense", address, str(error))
        except Exception:
            log.exception("bulk.stream_failed", address=address)
        finally:
            if stream is not None:
                stream.close()
            accepted.close()

    async def _let_in(self, stream: Stream, address: str) -> Session | None:
        """The session whose token it has shown; None for a stranger, which was told then. Raises InvalidRequest."""
        try:
            with trio.move_on_after(Deadline.BULK_CONNECT):
                begun = await run_interruptible(partial(self._begin, stream), stream.interrupt, self._letting_in)
                if begun is None:
                    return None
                answer, session = self._admit(*begun, stream.encrypted)
                if not isinstance(session, NotAuthorized):
                    return session
                refuse = partial(stream.send, format.encode_answer(answer))
                await run_interruptible(refuse, stream.interrupt, self._letting_in)
                raise session
            raise StreamStalled(f"it did not begin within {Deadline.BULK_CONNECT:g} s")
        except HandshakeFailed as error:
            self._failed.note("certificate", address, str(error))
        except StreamStalled as error:
            self._failed.note("slow", address, str(error))
        except StreamBroken as error:
            self._failed.note(UNFINISHED, address, str(error))
        except NotAuthorized as error:
            self._failed.note("token", address, str(error))
        return None

    def _begin(self, stream: Stream) -> tuple[int, bytes, str | None] | None:
        """Version, token, and the caller's name where it has proved one; None when nobody spoke."""
        first = stream.peek()
        if not first:
            return None
        if first[0] == format.TLS_HANDSHAKE:
            if self._context is None:
                raise InvalidRequest("it speaks TLS, and no certificate is configured here")
            stream.encrypt(self._context.current(), None)
        version, token = format.decode_prelude(_prelude(stream))
        return version, token, stream.node

    def _admit(
        self, version: int, token: bytes, caller: str | None, encrypted: bool
    ) -> tuple[Answer, Session | NotAuthorized]:
        if version != format.VERSION:
            return Answer.OTHER_VERSION, NotAuthorized(f"it speaks version {version}, and we {format.VERSION}")
        try:
            return Answer.OK, self._sessions.redeem(token, caller, encrypted)
        except NotAuthorized as error:
            return Answer.NO_SUCH_SESSION, error

    async def _work(self, stream: Stream, session: Session, address: str) -> None:
        started = time.monotonic()
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            self._sessions.ended(session)
            self._refused.note("too_many", address, f"{self._max_streams} streams are open")
            return
        try:
            work = partial(self._transfer, stream, session)
            with self._link.restoring() if session.direction is Direction.PULL else nullcontext():
                await run_interruptible(work, stream.interrupt, self._threads)
        finally:
            self._slots.release()
            self._sessions.ended(session)
        log.debug(
            "bulk.stream_ended",
            address=address,
            direction=session.direction.value,
            blobs=len(session.blobs),
            bytes=sum(blob.size for blob in session.blobs),
            seconds=round(time.monotonic() - started, 3),
        )

    def _transfer(self, stream: Stream, session: Session) -> None:
        stream.send(format.encode_answer(Answer.OK))
        if session.direction is Direction.PULL:
            stream.patience(Deadline.BULK_STALL)  # whatever sizes were named: see transmit
            stream.share(self._link, Urgency.RESTORE)
            transmit(stream, session.blobs, self._source, _nobody_watches, session.begun)
        else:
            stream.patience(patience_for(session.blobs))
            stream.share(self._link, Urgency.REPLICATION)
            receipt = Receipt()
            blobs, begun = session.blobs, session.begun
            receive(stream, blobs, self._sink, _nobody_watches, receipt, begun, ends_early=False)
            send_verdicts(stream, session.blobs, receipt.failed)


def _prelude(stream: Stream) -> bytes:
    """Raises StreamBroken, and InvalidRequest when it is cut off: ours come whole, or not at all."""
    try:
        return stream.receive_exactly(format.PRELUDE_BYTES)
    except StreamStalled:
        raise
    except StreamBroken as error:
        if stream.encrypted:
            raise  # it has a certificate of ours
        raise InvalidRequest("it ended before it had said what it wants") from error


def _nobody_watches(moved: int) -> None:
    """Progress is shown where the transfer was asked for."""
