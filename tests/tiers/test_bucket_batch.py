from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.errors import TierUnavailable
from fuse_tier.tiers.bucket_batch import Answer, Call, decode, encode, portions

_BODY = b"""--x\r
Content-ID: <response-1>\r
Content-Type: application/http\r
\r
HTTP/1.1 404 Not Found\r
Content-Length: 2\r
\r
{}\r
--x\r
Content-ID: <response-uuid + 0>\r
\r
HTTP/1.1 200 OK\r
\r
{"name": "a"}\r
--x--\r
"""


def test_answers_come_in_the_order_of_the_calls() -> None:
    first, second = decode("multipart/mixed; boundary=x", _BODY, 2)
    assert (first.status, first.json()) == (200, {"name": "a"})
    assert second == Answer(404, b"{}")


def test_a_call_that_was_left_out_may_be_made_again() -> None:
    assert [answer.status for answer in decode("multipart/mixed; boundary=x", _BODY, 3)] == [200, 404, 503]


@pytest.mark.parametrize("answer", [b"", b"<html>busy</html>"])
def test_what_is_no_answer_to_a_batch_may_pass(answer: bytes) -> None:
    with pytest.raises(TierUnavailable, match="something else"):
        decode("text/html", answer, 1)


@given(st.binary(max_size=300))
def test_a_damaged_answer_never_counts_as_done(body: bytes) -> None:
    try:
        answers = decode("multipart/mixed; boundary=x", b"--x\r\n" + body, 2)
    except TierUnavailable:
        return
    assert [answer.status for answer in answers] == [503, 503]


def test_calls_are_numbered_and_keep_their_bodies() -> None:
    text = encode([Call("GET", "/o/a"), Call("PATCH", "/o/b", {"metadata": {"k": "v"}})])
    assert text.count(b"Content-ID: <") == 2
    assert b"Content-ID: <1>\r\n\r\nPATCH /o/b HTTP/1.1\r\nContent-Type: application/json\r\n" in text
    assert b'\r\n\r\n{"metadata": {"k": "v"}}\r\n' in text


def test_portions_are_full_but_for_the_last() -> None:
    assert [list(portion) for portion in portions(range(5), 2)] == [[0, 1], [2, 3], [4]]
