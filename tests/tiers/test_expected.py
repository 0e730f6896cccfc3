from __future__ import annotations

from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.expected import Expected

A, B, C = (hash_bytes(content) for content in (b"a", b"b", b"c"))


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_asked_for_is_expected_until_a_manifest_names_it() -> None:
    expected = Expected(Clock())
    expected.expect([A, B])
    assert expected.names(60) == {A.name, B.name}
    expected.named([A, C])
    assert expected.names(60) == {B.name}


def test_each_piece_that_comes_shows_that_the_rest_will() -> None:
    clock = Clock()
    expected = Expected(clock)
    expected.expect([A, B])
    expected.expect([C])
    clock.now += 50
    expected.comes(A)
    clock.now += 50
    assert expected.names(60) == {A.name, B.name}
    clock.now += 50
    assert expected.names(60) == frozenset()
    expected.comes(A)
    assert expected.names(60) == frozenset()


def test_without_patience_nothing_is_expected() -> None:
    expected = Expected(Clock())
    expected.expect([A])
    assert expected.names(0) == frozenset()
