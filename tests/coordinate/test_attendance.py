"""Who hears of whom: everybody once, and then of changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.coordinate import attendance
from fuse_tier.coordinate.attendance import Attendance
from fuse_tier.members import Member
from fuse_tier.wire.reports import roster_from_wire

LIFE = "1"


def member(name: str, **more: object) -> Member:
    return replace(Member(name, "1", "127.0.0.1:1", "127.0.0.1:2", True, 10, 5), **more)  # type: ignore[arg-type]


class Cluster:
    def __init__(self, *names: str) -> None:
        self.members = {name: member(name) for name in names}
        self.attendance = Attendance(LIFE)
        for one in self.members.values():
            self.attendance.see(one)

    def change(self, name: str, **more: object) -> None:
        self.members[name] = replace(self.members[name], **more)  # type: ignore[arg-type]
        self.attendance.see(self.members[name])

    def forget(self, name: str) -> None:
        self.members.pop(name, None)
        self.attendance.forget_all_but(self.members)


def test_who_knows_nothing_or_another_life_hears_of_everybody() -> None:
    cluster = Cluster("a", "b")
    for life, version in (("", 0), ("0", 2), (LIFE, 99)):
        _, is_whole, members = roster_from_wire(cluster.attendance.since(life, version, 0.0))
        assert is_whole or version == 0
        assert {one.node for one in members} == {"a", "b"}


def test_who_knows_a_version_hears_of_what_has_changed_since() -> None:
    cluster = Cluster("a", "b", "c")
    version, _, _ = roster_from_wire(cluster.attendance.since("", 0, 0.0))
    assert roster_from_wire(cluster.attendance.since(LIFE, version, 0.0))[2] == ()
    cluster.change("b", alive=False)
    _, is_whole, members = roster_from_wire(cluster.attendance.since(LIFE, version, 0.0))
    assert (is_whole, [(one.node, one.alive) for one in members]) == (False, [("b", False)])


def test_free_room_alone_is_no_news() -> None:
    cluster = Cluster("a")
    version, _, _ = roster_from_wire(cluster.attendance.since("", 0, 0.0))
    cluster.change("a", free_bytes=1)
    assert roster_from_wire(cluster.attendance.since(LIFE, version, 0.0))[2] == ()


def test_who_was_forgotten_is_in_nobodys_roster_any_more() -> None:
    cluster = Cluster("a", "b")
    version, _, _ = roster_from_wire(cluster.attendance.since("", 0, 0.0))
    cluster.forget("a")
    _, is_whole, members = roster_from_wire(cluster.attendance.since(LIFE, version, 0.0))
    assert (is_whole, [one.node for one in members]) == (True, ["b"])


def test_of_many_only_so_many_are_told_everything_in_a_second_and_the_others_after_that() -> None:
    cluster = Cluster(*(f"n{number}" for number in range(300)))
    told = [roster_from_wire(cluster.attendance.since("", 0, 10.0)) for _ in range(1000)]
    assert {len(members) for _, _, members in told} == {0, 300}
    assert sum(is_whole for _, is_whole, _ in told) <= 202
    assert {version for version, is_whole, _ in told if not is_whole} == {0}
    later = roster_from_wire(cluster.attendance.since(LIFE, 0, 12.0))
    assert len(later[2]) == 300


@pytest.mark.parametrize("small", [1, 256])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["mounts", "dies", "leaves"]), st.integers(0, 2)),
        max_size=30,
    )
)
def test_whoever_follows_the_changes_knows_in_the_end_what_is_so(
    small: int, steps: list[tuple[str, str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attendance, "_SMALL", small)
        cluster = Cluster("a", "b", "c")
        known: list[dict[str, Member]] = [{}, {}, {}]
        at = [("", 0)] * 3

        def listen(who: int, now: float) -> None:
            version, is_whole, members = roster_from_wire(cluster.attendance.since(*at[who], now))
            if is_whole:
                known[who].clear()
            known[who] |= {one.node: one for one in members}
            at[who] = (LIFE, version)

        for now, (name, what, who) in enumerate(steps):
            if what == "leaves":
                cluster.forget(name)
            else:
                cluster.members.setdefault(name, member(name))
                change = {"alive": False} if what == "dies" else {"instance": str(now)}
                cluster.change(name, **change)
            listen(who, float(now) / 2)
        for who in range(3):
            listen(who, 1000.0 + who)  # what is put together once a second comes late
            listen(who, 1000.5 + who)
            assert known[who] == cluster.members
