from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.ranks.agenda import Agenda

puts = st.tuples(st.sampled_from("abc"), st.integers(0, 5).map(float))


@given(st.lists(puts | st.integers(0, 5), max_size=20))
def test_each_thing_is_taken_once_when_its_earliest_moment_has_come(steps: list[tuple[str, float] | int]) -> None:
    agenda, expected = Agenda[str](), dict[str, float]()
    for step in steps:
        if isinstance(step, tuple):
            thing, moment = step
            agenda.put(thing, moment)
            expected[thing] = min(moment, expected.get(thing, moment))
        else:
            taken = agenda.take(step)
            if taken is None:
                assert all(moment > step for moment in expected.values())
            else:
                assert expected[taken] == min(expected.values()) <= step
                del expected[taken]
        assert agenda.next_at == min(expected.values(), default=float("inf"))


def test_what_is_put_in_without_a_moment_comes_before_all_else() -> None:
    agenda = Agenda[str]()
    agenda.put("later", 1.0)
    agenda.put("now")
    assert [agenda.take(2.0), agenda.take(2.0), agenda.take(2.0)] == ["now", "later", None]
