"""Who may move which blobs over a bulk stream: tokens, each good for one stream of one caller.

Lives in the trio thread; its clock is trio's. Invariant: a token is used at most once, and never after
``UNUSED_SECONDS``.
"""

from __future__ import annotations

import enum
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from fuse_tier.blobs import Blob, Partial
from fuse_tier.errors import NotAuthorized, TierUnavailable
from fuse_tier.wire.bulk.format import TOKEN_BYTES

UNUSED_SECONDS = 30.0
_MOST_OPEN = 1024
_MOST_BLOBS = 1 << 18  # of all of these together: some 50 MB


class Direction(enum.Enum):
    """Seen from the connecting node."""

    PUSH = "push"
    PULL = "pull"


@dataclass(frozen=True, slots=True)
class Session:
    """What one stream is for. ``caller`` is the node in the certificate of who asked, None without TLS."""

    caller: str | None
    direction: Direction
    blobs: tuple[Blob, ...]
    encrypted: bool  # a stream in the clear is refused then
    begun: Mapping[Blob, Partial] = field(default_factory=dict)  # what the receiver has already


class Sessions:
    """Sessions that were granted and not begun yet."""

    def __init__(self) -> None:
        self._granted: dict[bytes, tuple[float, Session]] = {}  # in the order of their expiry
        self._waiting_blobs = 0  # of these sessions
        self._coming: Counter[Blob] = Counter()  # in pushes that were granted and have not ended

    def is_coming(self, blob: Blob) -> bool:
        """Whether somebody is sending it, or is about to."""
        self._expire()
        return blob in self._coming

    @property
    def is_receiving(self) -> bool:
        """Whether anybody is sending anything, or is about to."""
        self._expire()
        return bool(self._coming)

    def ended(self, session: Session) -> None:
        """A session's stream has ended, however."""
        if session.direction is Direction.PUSH:
            self._coming -= Counter(session.blobs)  # which drops what comes to nothing

    def grant(self, session: Session) -> bytes:
        """The token of a new session. Raises TierUnavailable when too many are waiting to begin."""
        self._expire()
        if len(self._granted) >= _MOST_OPEN or self._waiting_blobs + len(session.blobs) > _MOST_BLOBS:
            raise TierUnavailable(f"{len(self._granted)} transfers are waiting to begin: try again later")
        self._waiting_blobs += len(session.blobs)
        token = secrets.token_bytes(TOKEN_BYTES)
        self._granted[token] = (trio.current_time() + UNUSED_SECONDS, session)
        if session.direction is Direction.PUSH:
            self._coming.update(session.blobs)
        return token

    def redeem(self, token: bytes, caller: str | None, encrypted: bool) -> Session:
        """The session that a stream begins. Raises NotAuthorized; an attempt uses the token up.

        ``caller`` is the name in the stream's certificate; a stream in the clear has none, and then the token,
        which only its caller has seen, stands for it.
        """
        self._expire()
        _, session = self._granted.pop(token, (0.0, None))
        if session is None:
            raise NotAuthorized("no session has this token: it was used before, has expired, or was never granted")
        self._waiting_blobs -= len(session.blobs)
        if encrypted and caller != session.caller:
            self.ended(session)
            raise NotAuthorized(f"the session was granted to {session.caller!r}, and {caller!r} came for it")
        if session.encrypted and not encrypted:
            self.ended(session)
            raise NotAuthorized("the session was granted for an encrypted stream, and one in the clear came")
        return session

    def _expire(self) -> None:
        now = trio.current_time()
        while self._granted:
            token, (expires, session) = next(iter(self._granted.items()))
            if expires > now:
                return
            del self._granted[token]
            self._waiting_blobs -= len(session.blobs)
            self.ended(session)
