"""Who was known before a coordinator started anew, and has not been heard of since."""

from __future__ import annotations

from fuse_tier.deadlines import Deadline
from fuse_tier.replicate.unheard import Unheard


def test_while_a_coordinator_lives_nobody_is_unheard() -> None:
    assert Unheard().names(0.0) == ()


def test_who_was_known_before_is_unheard_until_it_is_heard_of() -> None:
    unheard = Unheard()
    unheard.begin(["c", "b", "d"], 10.0)
    assert unheard.names(10.0) == ("b", "c", "d")
    unheard.see(["b", "another"])
    unheard.see(["d"])
    assert unheard.names(11.0) == ("c",)


def test_nobody_is_waited_for_longer_than_for_a_node_that_is_away() -> None:
    unheard = Unheard()
    unheard.begin(["b"], 10.0)
    assert unheard.names(9.9 + Deadline.RETURN) == ("b",)
    assert unheard.names(10.0 + Deadline.RETURN) == ()


def test_each_life_of_the_coordinator_begins_anew() -> None:
    unheard = Unheard()
    unheard.begin(["b"], 10.0)
    unheard.see(["b"])
    unheard.begin(["b", "c"], 20.0)
    assert unheard.names(21.0) == ("b", "c")


def test_whom_a_short_life_of_the_coordinator_has_not_heard_of_is_still_unheard_in_the_next_one() -> None:
    unheard = Unheard()
    unheard.begin(["a", "b", "c"], 10.0)
    unheard.see(["a"])
    unheard.begin(["a"], 13.0)
    unheard.see(["a", "b"])
    assert unheard.names(14.0) == ("c",)
    unheard.begin(["a", "b"], 14.0 + Deadline.RETURN)
    assert unheard.names(14.0 + Deadline.RETURN) == ("a", "b"), "nobody has waited for c in vain twice"
