"""A connected TCP stream, in the clear or under TLS, for threads that block on it.

In the clear, file content goes by ``sendfile`` and arrives by ``splice`` through a pipe, so that no byte passes
through this process's memory. Every operation waits at most ``patience`` for a byte to move, and raises
StreamBroken when none does, or when the other side has gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress

from fuse_tier.blobs import Progress
from fuse_tier.errors import TierUnavailable
from fuse_tier.reading import is_lost
from fuse_tier.wire.bulk.pacing import Link, Pace, Urgency
from fuse_tier.wire.tls import node_of

_PIPE_BYTES = 1 << 20  # /proc/sys/fs/pipe-max-size, as kernels come
_CHUNK_BYTES = 8 << 20  # of one sendfile: between two reports of progress
_REPORTED_BYTES = 1 << 20  # what arrives comes in smaller pieces than are worth telling of
_AWAITED_BYTES = 512 << 10  # of a file's content: waking up for each packet costs both ends more than the copying
_TLS_BUFFER_BYTES = 1 << 20
_ZEROS = bytes(64 << 10)


class StreamBroken(TierUnavailable):
    """The other side went away, or stopped moving bytes, in the middle of a stream."""


class StreamStalled(StreamBroken):
    """No byte moved for as long as we wait."""


class HandshakeFailed(StreamBroken):
    """TLS did not come about: no certificate, one of another authority, or no TLS at all."""


class Stream:
    """Owns a connected, blocking socket. One thread at a time uses it; ``interrupt`` is for any other."""

    def __init__(self, connected: socket.socket, patience_seconds: float) -> None:
        self._socket = connected
        # A name of its own, so that an interruption can not miss while TLS takes the socket over.
        self._control = connected.dup()
        self._pipe: tuple[int, int] | None = None
        self._tls_buffer: memoryview | None = None
        self._patience = patience_seconds
        self._stopped = threading.Event()
        self._out: Pace | None = None
        self._into: Pace | None = None
        self._urgency = Urgency.REPLICATION
        self._awaited = 1
        self._owed = 0  # bytes received and not yet paid for: who does not read on slows the sender down
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # whoever sends fills its packets itself
        self.patience(patience_seconds)

    @property
    def encrypted(self) -> bool:
        """Whether TLS is in use."""
        return isinstance(self._socket, ssl.SSLSocket)

    @property
    def node(self) -> str | None:
        """Whose certificate the other side has shown; None in the clear."""
        connected = self._socket
        return node_of(connected.getpeercert(binary_form=True)) if isinstance(connected, ssl.SSLSocket) else None

    def patience(self, seconds: float) -> None:
        """How long an operation waits for a byte to move, from here on."""
        self._patience = seconds
        if self.encrypted:
            self._socket.settimeout(seconds)
        else:
            # The kernel's own timeouts: sendfile and splice keep them too, and no poll goes before each call.
            limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def share(self, link: Link, urgency: Urgency) -> None:
        """From here on it moves no faster than the node's link allows, and as its urgency says."""
        self._out, self._into, self._urgency = link.out, link.into, urgency

    def encrypt(self, context: ssl.SSLContext, server_name: str | None) -> None:
        """Shakes hands; a listening side gives no ``server_name``."""
        try:
            self._socket = context.wrap_socket(
                self._socket,
                server_side=server_name is None,
                server_hostname=server_name,
                do_handshake_on_connect=False,
            )
            self.patience(self._patience)
            self._socket.do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise HandshakeFailed(f"its certificate was refused: {error.verify_message}") from error
        except ssl.SSLError as error:
            if _is_end(error):
                raise StreamBroken("the other side ended the stream while hands were shaken") from error
            raise HandshakeFailed(f"the TLS handshake failed: {error.reason or error}") from error
        except OSError as error:
            raise self._broken(error) from error

    def peek(self) -> bytes:
        """The first byte that will be received; empty when the other side went away without one."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            raise self._broken(error) from error

    def send(self, content: bytes | memoryview, *, more_follows: bool = False) -> None:
        """Sends all of it, in the clear together with what follows at once."""
        self._pay(self._out, len(content))
        try:
            self._socket.sendall(content, socket.MSG_MORE if more_follows and not self.encrypted else 0)
        except OSError as error:
            raise self._broken(error) from error

    def receive_into(self, buffer: memoryview) -> int:
        """Receives at least one byte, and tells how many."""
        try:
            received = self._socket.recv_into(buffer)
        except OSError as error:
            raise self._broken(error) from error
        if not received:
            raise StreamBroken("the other side ended the stream in the middle")
        self._owe(received)
        return received

    def receive_exactly(self, size: int) -> bytes:
        """Receives so many bytes, and none that follow."""
        buffer = memoryview(bytearray(size))
        received = 0
        while received < size:
            received += self.receive_into(buffer[received:])
        return bytes(buffer)

    def send_file(self, fd: int, offset: int, size: int, progress: Progress) -> None:
        """Sends ``size`` bytes of a file, from an offset on; for what is not there, or cannot be read, go zeros."""
        while size:
            moved = self._send_part(fd, offset, size)
            if not moved:
                self._send_zeros(size)
                return
            offset += moved
            size -= moved
            progress(moved)

    def receive_file(self, fd: int, offset: int, size: int, progress: Progress) -> None:
        """Writes the next ``size`` bytes into a file. Raises OSError when the file does not take them."""
        untold = 0
        try:
            while size:
                moved = self._receive_part(fd, offset, size)
                offset += moved
                size -= moved
                untold += moved
                if untold >= _REPORTED_BYTES:
                    told, untold = untold, 0
                    progress(told)
        finally:
            self._await(1)
            if untold:
                progress(untold)

    def interrupt(self) -> None:
        """Makes the operation under way, and all after it, fail soon. Any thread, any time before ``close``."""
        self._stopped.set()
        with suppress(OSError):  # ENOTCONN: the other side was faster
            self._control.shutdown(socket.SHUT_RDWR)

    def interrupt_sending(self) -> None:
        """The same for operations that send; the other side sees the end of what was sent before."""
        self._stopped.set()
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def await_end(self, seconds: float) -> None:
        """After an interruption: waits until the other side has let go too, or so long."""
        with suppress(OSError), selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            latest = time.monotonic() + seconds
            while selector.select(max(0.0, latest - time.monotonic())) and self._control.recv(1 << 16):
                continue

    def close(self) -> None:
        """By the owner, when no thread uses the stream any more."""
        self._socket.close()
        self._control.close()
        for end in self._pipe or ():
            os.close(end)

    def _pay(self, pace: Pace | None, size: int) -> None:
        if pace is not None:
            pace.take(self._urgency, size, self._stopped)

    def _owe(self, size: int) -> None:
        if self._into is not None:
            self._owed += size
            if self._owed >= self._into.part:
                self._pay(self._into, self._owed)
                self._owed = 0

    def _await(self, size: int) -> None:
        """Has the kernel wake us for no less than so many bytes, which are sure to come.

        It does so earlier when the window is full or the other side has ended (tcp(7), SO_RCVLOWAT), and after our
        patience there is what has come by then: a slow stream loses nothing.
        """
        if size != self._awaited:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._awaited = size

    def _send_part(self, fd: int, offset: int, left: int) -> int:
        if self._out is not None:
            left = min(left, self._out.part)
        if not self.encrypted:
            self._pay(self._out, left)
            try:
                return os.sendfile(self._socket.fileno(), fd, offset, min(left, _CHUNK_BYTES))
            except OSError as error:
                if is_lost(error):  # of the file: a socket has other errors
                    return 0
                raise self._broken(error) from error
        buffer = self._buffer()
        got = read_there(fd, buffer[:left], offset)
        self.send(buffer[:got])
        return got

    def _send_zeros(self, left: int) -> None:
        while left:
            self.send(_ZEROS[:left])
            left -= min(left, len(_ZEROS))

    def _receive_part(self, fd: int, offset: int, left: int) -> int:
        if self.encrypted:
            buffer = self._buffer()[:left]
            filled = 0
            while filled < len(buffer):  # TLS gives 16 KiB at a time
                try:
                    filled += self.receive_into(buffer[filled:])
                except StreamBroken:
                    if not filled:
                        raise
                    break  # what came before is good; the next call meets the end again
            write_fully(fd, buffer, offset)
            return filled
        outlet, inlet = self._pipe or self._open_pipe()
        self._await(min(left, _AWAITED_BYTES))
        try:
            filled = os.splice(self._socket.fileno(), inlet, min(left, _PIPE_BYTES))
        except OSError as error:
            raise self._broken(error) from error
        if not filled:
            raise StreamBroken("the other side ended the stream in the middle")
        self._owe(filled)
        emptied = 0
        while emptied < filled:
            emptied += os.splice(outlet, fd, filled - emptied, offset_dst=offset + emptied)
        return filled

    def _open_pipe(self) -> tuple[int, int]:
        self._pipe = os.pipe2(os.O_CLOEXEC)
        with suppress(PermissionError):  # more than the user may have in pipes: a smaller one serves as well
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return self._pipe

    def _buffer(self) -> memoryview:
        if self._tls_buffer is None:
            self._tls_buffer = memoryview(bytearray(_TLS_BUFFER_BYTES))
        return self._tls_buffer

    def _broken(self, error: OSError) -> StreamBroken:
        if isinstance(error, TimeoutError) or error.errno in (errno.EAGAIN, errno.ETIMEDOUT):
            return StreamStalled(f"no byte moved for {self._patience:g} s")
        if _is_end(error):
            return StreamBroken("the other side ended the stream in the middle")
        if isinstance(error, ssl.SSLError):
            return HandshakeFailed(f"TLS failed: {error.reason or error}")  # TLS 1.3 tells a client so late
        return StreamBroken(f"the stream broke: {error.strerror or error}")


def _is_end(error: OSError) -> bool:
    """Which class an end in the middle has under TLS depends on the versions of Python and OpenSSL."""
    return isinstance(error, ssl.SSLEOFError) or (
        isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING"
    )


def read_there(fd: int, buffer: memoryview, offset: int) -> int:
    """How much of a file was read; nothing at its end, or where it cannot be read."""
    try:
        return os.preadv(fd, [buffer], offset)
    except OSError as error:
        if is_lost(error):
            return 0
        raise


def write_fully(fd: int, content: memoryview, offset: int) -> None:
    """``pwrite`` until all is written. Raises OSError."""
    while content:
        written = os.pwrite(fd, content, offset)
        content = content[written:]
        offset += written
