"""The way of a node's reports to its coordinator: one stream, for as long as it holds.

What is said over it, and what is answered, is the same as with calls: these are for a coordinator that has no stream
yet. After any failure the next report begins a new stream.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Self

from fuse_tier.errors import UnknownCall
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.calls import Conversation
from fuse_tier.wire.grpc import Client


class Reporting:
    """Of one node. One report at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: Conversation | None = None
        self._without_stream = ""  # the life of a coordinator of an earlier minor version

    @property
    def goes_on(self) -> bool:
        """Whether the next report goes where the last one went, as far as is known: else it had better be whole."""
        return bool(self._without_stream) or (self._stream is not None and self._stream.is_usable)

    async def send(self, request: pb.ReportRequest, deadline_seconds: float) -> pb.ReportReply:
        """Raises what the coordinator refuses it with, TierUnavailable and DeadlineExceeded."""
        reply: pb.ReportReply
        if not self._without_stream:
            with suppress(UnknownCall):
                return await self._say(request, deadline_seconds)
        reply = await self._client.call("Report", request, deadline_seconds)
        # The next one may be of another version.
        self._without_stream = reply.epoch if self._without_stream in ("", reply.epoch) else ""
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def _say(self, request: pb.ReportRequest, deadline_seconds: float) -> pb.ReportReply:
        if self._stream is not None and not self._stream.is_usable:
            self.close()
        if self._stream is None:
            self._stream = self._client.converse("Reports")
        try:
            reply: pb.ReportReply = await self._stream.ask(request, deadline_seconds)
        except BaseException:
            self.close()
            raise
        return reply
