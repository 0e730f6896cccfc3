"""Who takes what from whom when many want the same."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.hashing import hash_bytes
from fuse_tier.replicate.sharing import Sharing

BLOBS = [hash_bytes(b"%d" % number) for number in range(5)]


def everybody(node: str) -> bool:
    return True


@given(st.permutations([f"n{number}" for number in range(30)]))
def test_the_source_gives_each_content_once_and_nobody_feeds_more_than_two(askers: list[str]) -> None:
    sharing = Sharing()
    fed_by: Counter[str] = Counter()
    has = set()
    for asker in askers:
        feeder = sharing.refer(BLOBS[:1], asker, everybody, 0.0).get(BLOBS[0], "source")
        assert feeder == "source" or feeder in has
        fed_by[feeder] += 1
        has.add(asker)
    assert fed_by.pop("source") == 1
    assert max(fed_by.values()) <= 2


def test_who_comes_back_gets_it_from_the_source() -> None:
    sharing = Sharing()
    assert sharing.refer(BLOBS, "a", everybody, 0.0) == {}
    assert sharing.refer(BLOBS, "b", everybody, 0.0) == dict.fromkeys(BLOBS, "a")
    assert sharing.refer(BLOBS[:2], "b", everybody, 1.0) == {}


def test_nobody_is_sent_to_a_node_that_is_gone() -> None:
    sharing = Sharing()
    sharing.refer(BLOBS, "a", everybody, 0.0)
    assert sharing.refer(BLOBS, "b", lambda node: node != "a", 0.0) == {}


def test_what_was_given_long_ago_is_given_again() -> None:
    sharing = Sharing()
    sharing.refer(BLOBS, "a", everybody, 0.0)
    assert sharing.refer(BLOBS, "b", everybody, 500.0) == {}
