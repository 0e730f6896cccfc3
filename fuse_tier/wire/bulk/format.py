"""What stands on a bulk stream, byte by byte. All numbers are big endian.

::

    connecting node              listening node
    PRELUDE: "FTBS", version, token
                                 ANSWER: "FTBS", version, Answer
    then the blobs of the session, in the session's order, from the sender (push: the connecting node,
    pull: the listening one), each as
        HEADER: digest, size, Outcome of opening it
        the offset from which on it comes, if that outcome is RESUMED
        content, if that outcome is OK or RESUMED
    and after a push, from the listening node, for each blob
        VERDICT: Outcome, length of the reason
        the reason, UTF-8

Values and their bytes only; no socket is touched here.
"""

from __future__ import annotations

import enum
import struct

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, InvalidRequest, NotFound, TierError, TierFull, TierUnavailable

VERSION = 1
TOKEN_BYTES = 32
MAX_SESSION_BLOBS = 4096
MAX_ASKED_BLOBS = 1 << 14  # in one control call, which of them are missing
TLS_HANDSHAKE = 0x16  # RFC 8446, 5.1: the first byte of a TLS connection; no prelude begins with it

_MAGIC = b"FTBS"
_PRELUDE = struct.Struct(f">4sB{TOKEN_BYTES}s")
_ANSWER = struct.Struct(">4sBB")
_BLOB = struct.Struct(">16sQ")
_HEADER = struct.Struct(">16sQB")
_OFFSET = struct.Struct(">Q")
_VERDICT = struct.Struct(">BH")
_LONGEST_REASON = 1000  # bytes

PRELUDE_BYTES = _PRELUDE.size
ANSWER_BYTES = _ANSWER.size
HEADER_BYTES = _HEADER.size
OFFSET_BYTES = _OFFSET.size
VERDICT_BYTES = _VERDICT.size


class Answer(enum.IntEnum):
    """Whether a stream may begin."""

    OK = 0
    OTHER_VERSION = 1
    NO_SUCH_SESSION = 2


class Outcome(enum.IntEnum):
    """What became of one blob."""

    OK = 0
    NOT_FOUND = 1
    DAMAGED = 2
    FULL = 3
    FAILED = 4
    RESUMED = 5  # not from its start; only to who has said that it has the beginning


ERRORS: dict[Outcome, type[TierError]] = {
    Outcome.NOT_FOUND: NotFound,
    Outcome.DAMAGED: Damaged,
    Outcome.FULL: TierFull,
    Outcome.FAILED: TierUnavailable,
}


def outcome_of(error: TierError | None) -> Outcome:
    """How an error is said to the other side."""
    if error is None:
        return Outcome.OK
    return next((outcome for outcome, kind in ERRORS.items() if isinstance(error, kind)), Outcome.FAILED)


def encode_blob(blob: Blob) -> bytes:
    """A blob as it stands in control messages: digest and size, 24 bytes."""
    return _BLOB.pack(blob.digest, blob.size)


def decode_blob(encoded: bytes) -> Blob:
    """The inverse of ``encode_blob``. Raises InvalidRequest."""
    if len(encoded) != _BLOB.size:
        raise InvalidRequest(f"a blob is named by {_BLOB.size} bytes, not by {len(encoded)}")
    return Blob(*_BLOB.unpack(encoded))


def encode_prelude(token: bytes) -> bytes:
    """How a stream begins."""
    return _PRELUDE.pack(_MAGIC, VERSION, token)


def decode_prelude(encoded: bytes) -> tuple[int, bytes]:
    """Version and token. Raises InvalidRequest."""
    magic, version, token = _PRELUDE.unpack(encoded)
    if magic != _MAGIC:
        raise InvalidRequest("this is no bulk stream of fuse-tier")
    return version, token


def encode_answer(answer: Answer) -> bytes:
    """What the listening node replies to a prelude."""
    return _ANSWER.pack(_MAGIC, VERSION, answer)


def decode_answer(encoded: bytes) -> Answer:
    """The inverse of ``encode_answer``. Raises InvalidRequest."""
    magic, _, answer = _ANSWER.unpack(encoded)
    if magic != _MAGIC or answer not in set(Answer):
        raise InvalidRequest("this is no bulk port of fuse-tier")
    return Answer(answer)


def encode_header(blob: Blob, outcome: Outcome, offset: int = 0) -> bytes:
    """What stands before a blob, or before the rest of it from an offset on."""
    if offset:
        return _HEADER.pack(blob.digest, blob.size, Outcome.RESUMED) + _OFFSET.pack(offset)
    return _HEADER.pack(blob.digest, blob.size, outcome)


def decode_header(encoded: memoryview, expected: Blob) -> Outcome:
    """What became of the blob whose turn it is. Raises InvalidRequest when the header is of any other."""
    digest, size, outcome = _HEADER.unpack(encoded)
    if (digest, size) != (expected.digest, expected.size) or outcome not in set(Outcome):
        raise InvalidRequest(f"the header of {expected} was due, and something else came")
    return Outcome(outcome)


def decode_offset(encoded: memoryview, blob: Blob, expected: int) -> int:
    """Where the rest of a blob begins. Raises InvalidRequest when that is not where what we have ends."""
    (offset,) = _OFFSET.unpack(encoded)
    if offset != expected or not 0 < offset < blob.size:
        raise InvalidRequest(f"{blob} goes on at {offset}, and {expected} bytes of it are here")
    return int(offset)


def encode_verdict(error: TierError | None) -> bytes:
    """What the receiver of a push says of one blob."""
    reason = str(error or "").encode()[:_LONGEST_REASON]
    return _VERDICT.pack(outcome_of(error), len(reason)) + reason


def decode_verdict(encoded: memoryview) -> tuple[Outcome, int]:
    """Outcome, and the bytes of the reason that follows. Raises InvalidRequest."""
    outcome, length = _VERDICT.unpack(encoded)
    if outcome not in set(Outcome) - {Outcome.RESUMED} or length > _LONGEST_REASON:
        raise InvalidRequest("a verdict was due, and something else came")
    return Outcome(outcome), length
