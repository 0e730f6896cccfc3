"""Jobs whose ranks are declared to hold the same state in groups: what of one serves another, and what does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.completeness import find_complete, newest_complete, producible_steps, whole_steps
from fuse_tier.coordinate.choosing import Current, Known, choose
from fuse_tier.coordinate.needed import Listed, needed_parts
from fuse_tier.coordinate.standing import Held, standings
from fuse_tier.errors import ConfigError, FuseTierError, TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.backups_of_job import backups_of
from fuse_tier.restarts import Backup, Question, Resumption, Verdict

JOB = Job("default", "llama")
RANKS = 4
PLAIN = Lineage("llama", world_size=RANKS)
NEW = 50


def shared(rank: int, groups: int = 2) -> Lineage:
    return PLAIN.sharing(groups, rank)


def saved(rank: int, *steps: int, groups: int = 2) -> list[Saved]:
    """The number of a snapshot is its step's, so that what is chosen can be read."""
    return [Saved(SnapshotId(JOB.identity(str(rank)), step), shared(rank, groups), step, step, 10) for step in steps]


def knows(*parts: list[Saved], going_on: dict[str, Resumption] | None = None) -> Known:
    here = {several[0].id.identity.replica: several for several in parts if several}
    return Known(here, here, here, going_on=going_on or {})


def mounts(rank: int, **more: object) -> Question:
    """Nothing is known yet of which part of the state the rank has."""
    return replace(Question(JOB.identity(str(rank)), PLAIN), **more)  # type: ignore[arg-type]


def orders(rank: int, groups: int = 2, **more: object) -> Question:
    return replace(Question(JOB.identity(str(rank)), shared(rank, groups)), **more)  # type: ignore[arg-type]


def test_a_rank_that_has_lost_its_part_is_given_its_partners_when_it_says_which_rank_it_is() -> None:
    known = knows(saved(0, 10, 20), saved(1, 10, 20), saved(2, 10, 20))
    assert choose(orders(3), known, None, NEW) == Verdict(NEW, 20, 20, partner="1")
    assert choose(orders(0), known, None, NEW) == Verdict(NEW, 20, 20)

    # Its mount comes before that: the step is agreed on, and what belongs to it comes with the order.
    assert choose(mounts(3), known, None, NEW) == Verdict(NEW, 20, 0)
    at_work = {str(rank): Resumption("llama", NEW, 20, 1) for rank in range(RANKS)}
    known = knows(saved(0, 10, 20), saved(1, 10, 20), saved(2, 10, 20), going_on=at_work)
    joined = Current(NEW, 20, frozenset(at_work))
    assert choose(orders(3, fills=NEW), known, joined, NEW + 1) == Verdict(NEW, 20, 20, partner="1")


def test_what_comes_to_be_complete_meanwhile_does_not_change_the_step_of_who_is_still_to_be_given_its_files() -> None:
    at_work = {str(rank): Resumption("llama", NEW, 20, 1) for rank in range(RANKS)}
    known = knows(saved(0, 20, 30), saved(1, 20, 30), going_on=at_work)
    assert choose(orders(3, fills=NEW), known, Current(NEW, 20, frozenset(at_work)), NEW + 1).step == 20


def test_what_partners_have_of_an_earlier_life_is_not_given_beside_a_rank_that_went_on_without_it() -> None:
    # Rank 0 went on from 20 while a node was away; it is back, and of 30 there is every part without rank 0's.
    known = knows(saved(0, 10, 20), saved(1, 10, 20), saved(2, 10, 20, 30), saved(3, 10, 20, 30),
                  going_on={"0": Resumption("llama", NEW, 20, 1)})  # fmt: skip
    joined = Current(NEW, 20, frozenset({"0"}))
    for asks in (orders(1), mounts(1)):
        assert choose(asks, known, joined, NEW + 1) == Verdict(NEW, 20, 20)
        assert choose(asks, known, None, NEW + 1) == Verdict(NEW + 1, 20, 20, others=("0",))
    with pytest.raises(
        TierUnavailable, match=r"to go on from step 30, but replica 0 .* from an earlier one: stop all"
    ):
        choose(orders(1, forced=30), known, None, NEW + 1)
    # Once it is not at work any more, nothing speaks against it.
    assert choose(orders(1), replace(known, going_on={}), joined, NEW + 1).step == 30


def test_what_partners_have_saved_since_they_joined_is_given_beside_a_rank_that_is_still_saving_it() -> None:
    at_work = {str(rank): Resumption("llama", NEW, 20, 1) for rank in range(RANKS)}
    known = knows(saved(0, 10, 20), saved(1, 10, 20), saved(2, 10, 20, 30), saved(3, 10, 20, 30), going_on=at_work)
    known = replace(known, restarts=dict.fromkeys(at_work, NEW))
    assert choose(orders(1), known, Current(NEW, 20, frozenset(at_work)), NEW + 1).step == 30


def test_a_backup_that_is_finished_late_is_not_given_beside_ranks_that_went_back_from_it() -> None:
    at_work = {str(rank): Resumption("llama", NEW, 20, 1) for rank in range(3)}
    others = [saved(rank, 10, 20, groups=1) for rank in range(3)]
    joined = Current(NEW, 20, frozenset(at_work))
    asks = mounts(3, backups=(Backup(30, 30, NEW - 1),))
    assert choose(asks, knows(*others, saved(3, 10, 20, groups=1), going_on=at_work), joined, NEW + 1).step == 20
    with pytest.raises(TierUnavailable, match="stop all ranks of the job"):
        choose(asks, knows(*others, going_on=at_work), joined, NEW + 1)
    since = mounts(3, backups=(Backup(30, 30, NEW),))
    assert choose(since, knows(*others, going_on=at_work), joined, NEW + 1).step == 30


def test_when_the_last_partner_is_lost_too_the_step_is_older_or_the_rank_is_refused() -> None:
    assert choose(orders(3), knows(saved(0, 10, 20), saved(1, 10), saved(2, 20)), None, NEW).step == 10
    at_work = {str(rank): Resumption("llama", NEW, 20, 1) for rank in range(RANKS)}
    known = knows(saved(0, 10, 20), saved(1, 10), saved(2, 10, 20), saved(3, 10), going_on=at_work)
    with pytest.raises(TierUnavailable, match="went on from step 20"):
        choose(orders(3, fills=NEW), known, Current(NEW, 20, frozenset(at_work)), NEW + 1)


def test_without_a_declaration_nobodys_data_serves_another() -> None:
    known = knows(*(saved(rank, 10, 20, groups=1) for rank in range(3)), saved(3, 10, groups=1))
    assert choose(orders(3), known, None, NEW) == Verdict(NEW, 10, 10)


def test_who_declares_something_else_than_what_was_saved_is_given_no_partners_data() -> None:
    known = knows(*(saved(rank, 20) for rank in range(3)))
    assert choose(orders(3, groups=4), known, None, NEW) == Verdict(NEW, 20, 0)
    assert choose(orders(3, groups=1), known, None, NEW) == Verdict(NEW, 20, 0)


def test_own_data_goes_before_a_partners_and_ram_before_the_bucket() -> None:
    known = knows(*(saved(rank, 20) for rank in range(RANKS)))
    assert choose(orders(3), known, None, NEW).partner == ""
    known = knows(*(saved(rank, 20) for rank in range(3)))
    assert choose(orders(3, backups=(Backup(20, 7, 0),)), known, None, NEW) == Verdict(NEW, 20, 7)
    by_bucket = (Backup(20, 7, 0, partner="2"),)
    assert choose(orders(3, backups=by_bucket), known, None, NEW).partner == "1"
    assert choose(orders(3, backups=by_bucket), knows(), None, NEW) == Verdict(NEW, 20, 7, partner="2")


def test_a_step_that_partners_have_is_newer_than_a_backup_before_it() -> None:
    known = knows(saved(0, 30), saved(1, 30))
    assert choose(orders(3, backups=(Backup(20, 20, 0),)), known, None, NEW) == Verdict(NEW, 30, 30, partner="1")


def test_what_stays_in_ram_is_the_newest_that_all_have_and_the_newest_that_partners_have() -> None:
    here = {str(rank): saved(rank, 10, 20, *([30] if rank < 2 else [])) for rank in range(RANKS)}
    needed = needed_parts([Listed(RANKS, here, here)], (), {}, is_awaited=False)
    assert [needed[JOB.identity(str(rank))] for rank in range(RANKS)] == [(20, 30), (20, 30), (20,), (20,)]


def test_a_step_that_partners_have_is_shown_as_one_that_can_be_restored() -> None:
    held = [Held(one, True, is_copy) for rank in (0, 1) for one in saved(rank, 20) for is_copy in (False, True)]
    (found,) = standings(JOB, held)
    assert (found.step, found.ranks, found.tiers, found.restorable) == (20, RANKS, ("ram", "peer"), True)
    bad = (SnapshotId(JOB.identity("1"), 20), 20)
    (found,) = standings(JOB, held, [bad])
    assert found.is_bad
    more = [*held, *(Held(one, True, False) for one in saved(3, 20))]
    assert standings(JOB, more, [bad])[0].restorable


def test_of_the_bucket_one_groups_data_is_a_complete_checkpoint() -> None:
    listed = [*saved(2, 10, 20), *saved(3, 10, 20)]
    every = {str(rank) for rank in range(RANKS)}
    assert [one.step for one in find_complete(JOB, listed, every)] == [10, 20]
    newest = newest_complete(JOB, listed, every)
    assert newest is not None
    assert newest.lineage == PLAIN
    # What partners bring later is no other checkpoint.
    assert newest_complete(JOB, [*listed, *saved(0, 20)], every, [newest]) is None

    there = {one.id: one for one in listed}
    assert backups_of(JOB.identity("1"), shared(1), [newest], there)[0].partner == "3"
    assert backups_of(JOB.identity("3"), shared(3), [newest], there)[0].partner == ""
    (unsaid,) = backups_of(JOB.identity("1"), PLAIN, [newest], there)
    assert (unsaid.step, unsaid.number, unsaid.partner) == (20, 0, "")
    assert backups_of(JOB.identity("1"), shared(1), [newest], {**there, listed[-1].id: None}) == ()


def test_groups_that_there_cannot_be_are_none() -> None:
    assert PLAIN.sharing(3, 1) == PLAIN.sharing(1, 1) == PLAIN
    for groups, part in ((3, 0), (2, 2), (1, 0), (0, 1), (2, -1)):
        with pytest.raises(ConfigError, match="there is none"):
            Lineage("llama", world_size=RANKS, groups=groups, part=part)


held = st.lists(st.sampled_from([10, 20, 30]), max_size=3, unique=True).map(sorted)


@given(st.lists(held, min_size=RANKS, max_size=RANKS), st.sampled_from([1, 2, 4]))
def test_all_ranks_get_one_step_each_its_own_part_and_the_newest_that_can_be_had(
    steps: list[list[int]], groups: int
) -> None:
    parts = [saved(rank, *several, groups=groups) for rank, several in enumerate(steps)]
    current: Current | None = None
    going_on: dict[str, Resumption] = {}
    try:
        for rank in range(RANKS):
            verdict = choose(mounts(rank), knows(*parts, going_on=going_on), current, NEW)
            joined = frozenset({*(current.joined if current else ()), str(rank)})
            current = Current(verdict.restart, verdict.step, joined)
            going_on[str(rank)] = Resumption("llama", verdict.restart, verdict.step, 1)
    except FuseTierError:
        assert not can_be_had(steps, groups)
        return
    assert current is not None
    assert {one.step for one in going_on.values()} == {current.step}
    assert current.step == max(can_be_had(steps, groups), default=None)
    for rank in range(RANKS):
        verdict = choose(orders(rank, groups, fills=NEW), knows(*parts, going_on=going_on), current, NEW + 1)
        assert verdict.step == current.step
        if verdict.step is not None:
            giver = int(verdict.partner or rank)
            assert verdict.number in [one.id.number for one in parts[giver]]
            assert verdict.number == verdict.step
            assert giver % (RANKS // groups) == rank % (RANKS // groups)


def can_be_had(steps: list[list[int]], groups: int) -> Iterable[int]:
    """By the words of the protocol: the steps of which each part is with somebody who was declared to hold it."""
    size = RANKS // groups
    return [
        step
        for step in (10, 20, 30)
        if {rank % size for rank in range(RANKS) if step in steps[rank]} == set(range(size))
    ]


@given(st.lists(held, min_size=RANKS, max_size=RANKS), st.sampled_from([1, 2, 4]))
def test_what_is_whole_can_be_had_and_partners_only_add_to_it(steps: list[list[int]], groups: int) -> None:
    parts = {str(rank): saved(rank, *several, groups=groups) for rank, several in enumerate(steps)}
    whole, producible = whole_steps(parts, RANKS), producible_steps(parts, RANKS)
    assert whole.items() <= producible.items()
    if groups == 1:
        assert whole == producible
