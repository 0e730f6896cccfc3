from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.mount.keeper import Limits


@given(st.integers(1, 10_000))
def test_pauses_grow_from_none_to_the_longest(failures: int) -> None:
    limits = Limits()
    assert 0 <= limits.delay(failures) <= limits.delay(failures + 1) <= limits.longest_seconds


def test_the_first_deaths_cost_no_pause() -> None:
    assert [Limits().delay(failures) for failures in (1, 2, 3)] == [0, 0, 0]
