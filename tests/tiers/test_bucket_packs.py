"""How small content is divided into packs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import Blob
from fuse_tier.tiers.bucket_packs import SMALL, divide


def blobs_of(rng: random.Random, count: int, size: int) -> set[Blob]:
    return {Blob(rng.randbytes(16), size) for _ in range(count)}


@given(st.sets(st.builds(Blob, st.binary(min_size=16, max_size=16), st.integers(0, SMALL - 1)), max_size=80))
def test_each_blob_is_in_one_pack_and_packs_are_of_bearable_size(blobs: set[Blob]) -> None:
    packs = list(divide(blobs))
    assert sorted(blob for pack in packs for blob in pack) == sorted(blobs)
    assert all(pack and sum(blob.size for blob in pack) <= 4 << 20 for pack in packs)
    assert list(divide(sorted(blobs, reverse=True))) == packs


def test_no_pack_has_more_files_than_its_index_may_have(rng: random.Random) -> None:
    packs = list(divide(blobs_of(rng, 30_000, 10)))
    assert max(len(pack) for pack in packs) <= 4096
    assert len(packs) < 40


def test_packs_are_large_enough_to_be_few(rng: random.Random) -> None:
    assert len(list(divide(blobs_of(rng, 10_000, 4096)))) < 45


def test_ranks_that_differ_in_a_file_have_most_packs_in_common(rng: random.Random) -> None:
    common = blobs_of(rng, 20_000, 4096)
    one, other = (set(divide(common | blobs_of(rng, 1, 4096))) for _ in range(2))
    assert len(one - other) <= 20
    assert len(one & other) >= 10
