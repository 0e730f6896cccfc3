from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import MAX_BLOB_SIZE, Blob
from fuse_tier.errors import Damaged, InvalidRequest, NotFound, TierError, TierFull, TierRefused, TierUnavailable
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Answer, Outcome

BLOBS = st.builds(Blob, st.binary(min_size=16, max_size=16), st.integers(0, MAX_BLOB_SIZE))


@given(BLOBS)
def test_a_blob_is_what_it_was(blob: Blob) -> None:
    assert format.decode_blob(format.encode_blob(blob)) == blob


@given(st.binary(max_size=40))
def test_bytes_that_name_no_blob_are_refused(encoded: bytes) -> None:
    try:
        blob = format.decode_blob(encoded)
    except InvalidRequest:
        return
    assert format.encode_blob(blob) == encoded


@given(st.binary(min_size=32, max_size=32))
def test_a_prelude_carries_its_token(token: bytes) -> None:
    assert format.decode_prelude(format.encode_prelude(token)) == (format.VERSION, token)


@pytest.mark.parametrize("answer", Answer)
def test_an_answer_is_what_it_was(answer: Answer) -> None:
    assert format.decode_answer(format.encode_answer(answer)) is answer


@given(BLOBS, st.sampled_from(Outcome))
def test_a_header_is_what_it_was(blob: Blob, outcome: Outcome) -> None:
    assert format.decode_header(memoryview(format.encode_header(blob, outcome)), blob) is outcome


@given(st.integers(0, 1 << 64), st.integers(0, 2000))
def test_an_offset_is_where_what_is_here_ends_within_the_blob_or_refused(offset: int, expected: int) -> None:
    blob = Blob(bytes(16), 1000)
    encoded = format.encode_header(blob, Outcome.OK, offset % (1 << 64))[format.HEADER_BYTES :].ljust(8, b"\0")
    if offset == expected and 0 < offset < blob.size:
        assert format.decode_offset(memoryview(encoded), blob, expected) == offset
    else:
        with pytest.raises(InvalidRequest):
            format.decode_offset(memoryview(encoded), blob, expected)


@given(BLOBS, BLOBS)
def test_the_header_of_another_blob_is_refused(sent: Blob, expected: Blob) -> None:
    if sent == expected:
        return
    with pytest.raises(InvalidRequest, match=f"the header of {expected} was due"):
        format.decode_header(memoryview(format.encode_header(sent, Outcome.OK)), expected)


@pytest.mark.parametrize("kind", [NotFound, Damaged, TierFull, TierUnavailable])
def test_a_verdict_says_what_kind_of_error_it_was_and_why(kind: type[TierError]) -> None:
    encoded = format.encode_verdict(kind("ü" * 5000))
    outcome, length = format.decode_verdict(memoryview(encoded[: format.VERDICT_BYTES]))
    assert format.ERRORS[outcome] is kind
    assert len(encoded) == format.VERDICT_BYTES + length
    assert encoded[format.VERDICT_BYTES :].decode(errors="ignore") == "ü" * (length // 2)


def test_other_errors_are_told_as_passing_ones() -> None:
    assert format.outcome_of(TierRefused("no")) is Outcome.FAILED
    assert format.outcome_of(None) is Outcome.OK


@given(st.binary(min_size=64, max_size=64))
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes) -> None:
    with suppress(InvalidRequest):
        format.decode_prelude(garbage[: format.PRELUDE_BYTES])
    with suppress(InvalidRequest):
        format.decode_answer(garbage[: format.ANSWER_BYTES])
    with suppress(InvalidRequest):
        format.decode_header(memoryview(garbage[: format.HEADER_BYTES]), Blob(bytes(16), 0))
    with suppress(InvalidRequest):
        format.decode_verdict(memoryview(garbage[: format.VERDICT_BYTES]))
