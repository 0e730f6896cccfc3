from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.errors import ConfigError
from fuse_tier.identity import Identity, SnapshotId, is_name


@pytest.mark.parametrize("text", ["a", "llama", "slice-0-3", "a.b_c-d", "0", "A" * 253])
def test_what_kubernetes_calls_a_name_is_one(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a..b", ".a", "a.", "-a", "a-", "a/b", "/", "a b", "a\n", "\na", "a\0", "é", "a" * 254, "a%2f"],
)
def test_what_could_be_more_than_one_name_of_a_file_is_none(text: str) -> None:
    assert not is_name(text)


@given(st.text())
def test_a_name_never_leaves_the_directory_that_it_stands_in(text: str) -> None:
    if is_name(text):
        assert os.path.normpath(os.path.join("/root", text)) == f"/root/{text}"
        assert len(text.encode()) <= 253


def test_an_identity_is_read_and_written() -> None:
    identity = Identity.parse("default/llama/slice-0-3")
    assert identity == Identity("default", "llama", "slice-0-3")
    assert str(identity) == "default/llama/slice-0-3"


@pytest.mark.parametrize(
    "text", ["", "a", "a/b", "a/b/c/d", "a//c", "/a/b/c", "a/b/c/", "../b/c", "a/b/c@1", "a/b/ c"]
)
def test_what_is_no_identity_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match="NAMESPACE/WORKLOAD/REPLICA"):
        Identity.parse(text)


def test_a_snapshot_is_read_and_written() -> None:
    snapshot = SnapshotId.parse("default/llama/slice-0-3@12")
    assert snapshot == SnapshotId(Identity("default", "llama", "slice-0-3"), 12)
    assert str(snapshot) == "default/llama/slice-0-3@12"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b/c",
        *(f"a/b/c@{number}" for number in ("", "x", "-1", "1@2", "١", "0", "01", "9" * 19, "9" * 5000, "+1")),
    ],
)
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        SnapshotId.parse(text)


@pytest.mark.parametrize("number", [0, -1, 1 << 63])
def test_numbers_begin_at_one_and_fit_into_63_bits(number: int) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        SnapshotId(Identity("a", "b", "c"), number)


def test_snapshots_are_ordered_by_volume_and_then_by_number() -> None:
    first, second = Identity("a", "b", "c"), Identity("a", "b", "d")
    ordered = [SnapshotId(first, 2), SnapshotId(first, 10), SnapshotId(second, 1)]
    assert sorted({*ordered}) == ordered
