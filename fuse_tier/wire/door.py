"""Who may come in to a control port: TLS, who it is, how many at once. What is behind it only sees who came in.

gRPC tells nobody of a connection that it turns away, takes as many as come, and reads its certificates once. So
connections end here: they are counted, shake hands, show a certificate of our authority and begin as HTTP/2 does;
then their bytes go to and from gRPC's own server, which listens on an abstract unix socket. Each connection
to that has a name that nobody can guess and that is known here: so a call's caller is known by its connection, and
a call that comes over any other is refused.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.wire.rejections import UNFINISHED, Rejections
from fuse_tier.wire.renewal import Renewing
from fuse_tier.wire.strangers import Strangers
from fuse_tier.wire.tls import TlsFiles, node_of, server_context

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 1024
_LEAST_STRANGERS = 64  # who have not shown yet who they are; where many may be in, one of
_STRANGERS = 16
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_TLS_HANDSHAKE = 0x16  # RFC 8446, 5.1
_PUMPED = 1 << 16
_RESPITE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``node`` is the name in its certificate, None without TLS; ``address`` is for people."""

    node: str | None
    address: str


class _TurnedAway(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Door:
    """Of one control port. ``inner`` is the address at which gRPC listens, in gRPC's words."""

    def __init__(self, tls: TlsFiles | None, *, most_connections: int = MOST_CONNECTIONS) -> None:
        self._name = f"fuse-tier-{secrets.token_hex(16)}"
        self._context = Renewing(tls, _context) if tls is not None else None
        self._places = trio.Semaphore(most_connections)
        self._strangers = Strangers(max(_LEAST_STRANGERS, most_connections // _STRANGERS))
        self._most = most_connections
        self._callers: dict[str, Caller] = {}
        self._rejections = Rejections("control.connection_refused")

    @property
    def inner(self) -> str:
        """Where gRPC has to listen."""
        return f"unix-abstract:{self._name}"

    @property
    def callers(self) -> Mapping[str, Caller]:
        """Who is in, by the name that gRPC has for the connection."""
        return self._callers

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Lets in until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, peer = await listener.accept()
                except OSError as error:
                    log.warning("control.accept_failed", reason=error.strerror)
                    await trio.sleep(_RESPITE_SECONDS)  # the backlog keeps who comes until something was freed
                    continue
                host, address = peer[0], f"{peer[0]}:{peer[1]}"
                try:
                    self._places.acquire_nowait()
                except trio.WouldBlock:
                    connection.close()
                    self._rejections.note("too_many", address, f"{self._most} connections are open")
                    continue
                full = self._strangers.enter(host)
                if full is not None:
                    self._places.release()
                    connection.close()
                    self._rejections.note("too_many", address, full)
                    continue
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                nursery.start_soon(self._take_in, trio.SocketStream(connection), host, address)

    async def _take_in(self, outer: trio.SocketStream, host: str, address: str) -> None:
        """Survives whatever comes over a connection."""
        try:
            async with outer:
                try:
                    admitted = await self._admit(outer)
                except (trio.BrokenResourceError, OSError) as error:
                    raise _TurnedAway(UNFINISHED, "it went away before it had said who it is") from error
                finally:
                    self._strangers.leave(host)
                if admitted is not None:
                    stream, node = admitted
                    await self._relay(stream, Caller(node, address))
        except _TurnedAway as refused:
            self._rejections.note(refused.kind, address, str(refused))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            log.debug("control.connection_broken", address=address, reason=str(error))
        except Exception:
            log.exception("control.connection_failed", address=address)
        finally:
            self._places.release()

    async def _admit(self, outer: trio.SocketStream) -> tuple[trio.abc.Stream, str | None] | None:
        """The stream from which HTTP/2's preface has been read, and whose it is; None if nobody spoke."""
        with trio.move_on_after(Deadline.CONTROL_CONNECT):
            first = await outer.socket.recv(1, socket.MSG_PEEK)
            if not first:
                return None
            stream: trio.abc.Stream = outer
            node = None
            if self._context is not None:
                stream, node = await _shake_hands(outer, self._context.current(), first)
            elif first[0] == _TLS_HANDSHAKE:
                raise _TurnedAway("nonsense", "it speaks TLS, and no certificate is configured here")
            preface = b""
            while len(preface) < len(_PREFACE):
                received = await stream.receive_some(len(_PREFACE) - len(preface))
                preface += received
                if not received and not preface:
                    return None  # it has refused us: its log says why
                if not received or not _PREFACE.startswith(preface):
                    raise _TurnedAway("nonsense", "it does not speak HTTP/2")
            return stream, node
        raise _TurnedAway("slow", f"it did not say within {Deadline.CONTROL_CONNECT:g} s who it is")

    async def _relay(self, stream: trio.abc.Stream, caller: Caller) -> None:
        name = f"{self._name}-{secrets.token_hex(16)}"
        known_as = f"unix-abstract:{name}"
        with trio.socket.socket(socket.AF_UNIX) as connecting:
            await connecting.bind(f"\0{name}")
            self._callers[known_as] = caller  # before gRPC can see it, and until nobody else can have the name
            try:
                await connecting.connect(f"\0{self._name}")
                inner = trio.SocketStream(connecting)
                await inner.send_all(_PREFACE)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pump, stream, inner, nursery.cancel_scope)
                    nursery.start_soon(_pump, inner, stream, nursery.cancel_scope)
            finally:
                del self._callers[known_as]


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream, ends: trio.CancelScope) -> None:
    # That the other side is gone is how connections end.
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        while chunk := await _receive(source):
            await _send(sink, chunk)
    ends.cancel()


async def _receive(source: trio.abc.Stream) -> bytes | bytearray:
    """A stream gives others their turn at each call, ready or not; of a bare socket it is enough to wait where it has
    nothing.
    """
    if not isinstance(source, trio.SocketStream):
        return await source.receive_some(_PUMPED)
    while True:
        await trio.lowlevel.wait_readable(source.socket)
        with suppress(BlockingIOError):
            return os.read(source.socket.fileno(), _PUMPED)


async def _send(sink: trio.abc.Stream, chunk: bytes | bytearray) -> None:
    """See ``_receive``."""
    if not isinstance(sink, trio.SocketStream):
        await sink.send_all(chunk)
        return
    left = memoryview(chunk)
    while left:
        try:
            left = left[os.write(sink.socket.fileno(), left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sink.socket)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = server_context(files)
    context.set_alpn_protocols(["h2"])  # which gRPC insists on
    return context


async def _shake_hands(
    outer: trio.SocketStream, context: ssl.SSLContext, first: bytes
) -> tuple[trio.abc.Stream, str]:
    if first[0] != _TLS_HANDSHAKE:
        raise _TurnedAway("nonsense", "it does not speak TLS")
    secured = trio.SSLStream(outer, context, server_side=True, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise _TurnedAway("certificate", f"its certificate was refused: {cause.verify_message}") from error
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            raise _TurnedAway("certificate", f"the TLS handshake failed: {cause.reason or cause}") from error
        raise
    encoded = secured.getpeercert(binary_form=True)
    return secured, node_of(encoded)
