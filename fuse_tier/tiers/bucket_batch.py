"""Many small requests in one: Cloud Storage's batch format (cloud.google.com/storage/docs/batch).

Pure: turns calls into the body of one request, and its answer into one answer for each call, in their order. What
the answers mean is the business of whoever called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final, TypeVar

from fuse_tier.errors import TierUnavailable

T = TypeVar("T")

AT_MOST: Final = 100  # calls in a request: the service's own limit
PATH: Final = "/batch/storage/v1"
_BOUNDARY: Final = "fuse-tier-4c1f0a7be2d94d0f93"
CONTENT_TYPE: Final = f"multipart/mixed; boundary={_BOUNDARY}"
_ANSWERED: Final = re.compile(r"<?response-(?:.*\+\s*)?([0-9]+)>?")


@dataclass(frozen=True, slots=True)
class Call:
    """One request within a batch."""

    method: str
    target: str  # path and query
    body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call; 503 stands for one that the service left out."""

    status: int
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """What the answer says; empty if that cannot be read."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def portions(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Items in portions of at most so many."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def encode(calls: Sequence[Call]) -> bytes:
    """The body of the request that makes these calls."""
    parts = []
    for number, call in enumerate(calls):
        text = b"" if call.body is None else json.dumps(call.body).encode()
        lines = [f"{call.method} {call.target} HTTP/1.1", f"Content-Length: {len(text)}"]
        if text:
            lines.insert(1, "Content-Type: application/json")
        head = ("Content-Type: application/http", "Content-Transfer-Encoding: binary", f"Content-ID: <{number}>", "")
        parts.append("\r\n".join((f"--{_BOUNDARY}", *head, *lines, "", "")).encode() + text + b"\r\n")
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def decode(content_type: str, body: bytes, count: int) -> list[Answer]:
    """One answer for each call, in their order. Raises TierUnavailable for what is no answer to a batch."""
    parser = BytesParser(policy=HTTP)
    whole = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    if not whole.is_multipart():
        raise TierUnavailable("a batch of requests was answered with something else")
    answers = [Answer(503)] * count
    for part in whole.get_payload():
        if isinstance(part, Message) and (answered := _ANSWERED.fullmatch(str(part.get("Content-ID", "")).strip())):
            number = int(answered[1])
            if number < count:
                answers[number] = _answer(part.get_payload(decode=True))
    return answers


def _answer(text: Any) -> Answer:
    head, _, body = bytes(text or b"").lstrip().partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer(503)
    return Answer(int(words[1]), body.strip())
