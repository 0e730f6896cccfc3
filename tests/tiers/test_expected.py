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


def test_what_is_asked_for_again_stays_with_what_came_of_it_before() -> None:
    """As the sessions of one transfer ask for their parts, one after another."""
    clock = Clock()
    expected = Expected(clock)
    expected.expect([A, B, C])
    for part in (A, B, C):
        clock.now += 50
        expected.expect([part])
    assert expected.names(60) == {A.name, B.name, C.name}


def test_what_was_begun_and_not_ended_is_not_kept_for_ever_by_what_the_next_one_shares_with_it() -> None:
    clock = Clock()
    expected = Expected(clock)
    expected.expect([A, B], anew=True)
    for _ in range(2):
        clock.now += 50
        expected.expect([A, C], anew=True)
    assert expected.names(60) == {A.name, C.name}


def test_of_too_many_those_are_given_up_that_had_no_sign_for_longest() -> None:
    clock = Clock()
    expected = Expected(clock, most=8)
    expected.expect([A, B])
    for number in range(100):
        clock.now += 0.1
        expected.comes(A)
        garbage = [hash_bytes(b"%d" % number), hash_bytes(b"-%d" % number)]
        expected.expect(garbage)
        names = expected.names(600)
        assert len(names) <= 8
        assert {A.name, B.name, *(blob.name for blob in garbage)} <= names


def test_what_is_asked_for_is_expected_however_much_it_is() -> None:
    """A node asks its own tier about the whole tree that it is about to restore."""
    expected = Expected(Clock(), most=2)
    expected.expect([A, B, C])
    assert expected.names(60) == {A.name, B.name, C.name}


def test_without_patience_nothing_is_expected() -> None:
    expected = Expected(Clock())
    expected.expect([A])
    assert expected.names(0) == frozenset()
