"""Who may still have what a volume has lost."""

from __future__ import annotations

from dataclasses import replace

from fuse_tier.members import Member
from fuse_tier.replicate.lost import Lost

B = Member("b", "b1", "b:1", "b:2", alive=True)
C = Member("c", "c1", "c:1", "c:2", alive=True)


def test_who_was_asked_already_is_asked_no_more() -> None:
    lost = Lost([B])
    assert not lost.may_be_on(B)
    assert lost.begin([B, C]) == [C]


def test_each_is_asked_once_and_may_have_it_until_that_has_ended() -> None:
    lost = Lost()
    assert lost.begin([C]) == [C]
    assert lost.begin([C]) == []
    assert lost.may_be_on(C)
    lost.end(C)
    assert lost.begin([C]) == []
    assert not lost.may_be_on(C)


def test_who_starts_again_or_was_away_is_asked_again() -> None:
    lost = Lost([B, C])
    assert lost.may_be_on(replace(B, instance="b2"))
    away = replace(C, alive=False)
    assert not lost.may_be_on(away)
    assert lost.begin([away]) == []
    assert lost.begin([C]) == [C]
