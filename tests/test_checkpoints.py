"""Which names are steps, and what the record of a checkpoint says and refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Checkpoint, Job, decode, encode, is_checkpoint_name
from fuse_tier.errors import MalformedManifest
from fuse_tier.manifest import Lineage

AT = 1_700_000_000_123_456_789  # 2023-11-14 22:13:20 UTC
EXAMPLE = Checkpoint(Job("default", "llama"), Lineage("exp-7", world_size=8), 100, AT, {"0": 12, "slice-0-3": 9})


@given(
    step=st.none() | st.integers(0, 10**18 - 1),
    at=st.integers(0, 253_402_300_799 * 10**9 % (1 << 63)),
    snapshots=st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True), st.integers(1, (1 << 63) - 1), min_size=1
    ),
)
def test_a_record_is_read_as_it_was_written(step: int | None, at: int, snapshots: dict[str, int]) -> None:
    checkpoint = replace(EXAMPLE, step=step, created_ns=at, snapshots=snapshots)
    assert decode(encode(checkpoint)) == checkpoint
    assert all(map(is_checkpoint_name, checkpoint.names))


def test_a_checkpoint_is_called_by_its_date_with_as_much_of_it_as_it_takes() -> None:
    assert EXAMPLE.names == ("2023-11-14_22-13", "2023-11-14_22-13-20", "2023-11-14_22-13-20.123456789")
    assert list(EXAMPLE.names) == sorted(EXAMPLE.names)


@pytest.mark.parametrize("cut", [0, 1, 50, -1])
def test_a_record_that_was_cut_or_changed_is_refused(cut: int) -> None:
    text = encode(EXAMPLE)
    with pytest.raises(MalformedManifest):
        decode(text[:cut])
    with pytest.raises(MalformedManifest):
        decode(text.replace(b'"step":100', b'"step":101'))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fuse_tier_checkpoint": 2}, "newer version"),
        ({"snapshots": {}}, "no snapshot"),
        ({"snapshots": {"../x": 1}}, "no snapshot"),
        ({"snapshots": {"0": True}}, "no snapshot"),
        ({"step": -1}, "no step"),
        ({"workload": "../../x"}, "letters"),
        ({"created_ns": 1 << 63}, "out of range"),
    ],
)
def test_a_record_that_lies_is_refused_with_the_reason(change: dict[str, object], told: str) -> None:
    fields = json.loads(encode(EXAMPLE).splitlines()[0]) | change
    body = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    text = body + json.dumps({"xxh3_128": xxhash.xxh3_128_hexdigest(body)}, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(MalformedManifest, match=told):
        decode(text)
