from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import MAX_BLOB_SIZE, Blob
from fuse_tier.errors import InvalidRequest

blobs = st.builds(Blob, st.binary(min_size=16, max_size=16), st.integers(0, MAX_BLOB_SIZE))


@given(blobs)
def test_a_name_is_read_as_it_was_written(blob: Blob) -> None:
    assert Blob.parse(blob.name) == blob
    assert str(blob) == blob.name
    assert len(blob.name) <= 255


@given(blobs, blobs)
def test_different_blobs_have_different_names(one: Blob, other: Blob) -> None:
    assert (one.name == other.name) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        *(f"{'0' * 32}{rest}" for rest in ("", "-", "-01", "--1", "-1\n", "-1.tmp", "-" + "9" * 19)),
        *(f"{digest}-1" for digest in ("0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29)),
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        Blob.parse(name)


@pytest.mark.parametrize(("digest", "size"), [(bytes(15), 0), (bytes(17), 0), (bytes(16), -1), (bytes(16), 1 << 63)])
def test_what_no_file_can_be_is_no_blob(digest: bytes, size: int) -> None:
    with pytest.raises(InvalidRequest):
        Blob(digest, size)
