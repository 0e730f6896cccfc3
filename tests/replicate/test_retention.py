"""What is given up, and what never is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.retention import Keep, choose_kept, plan_job_retention, plan_retention

JOB = Job("default", "llama")
HOUR_NS = 3600 * 10**9
AT = 1_700_000_000 * 10**9


def saved(number: int, run: str = "llama", step: int | None = None, *, replica: str = "0", at: int = 0) -> Saved:
    """Taken an hour after the one before it, unless it is said when."""
    return Saved(SnapshotId(JOB.identity(replica), number), Lineage(run), step, at or AT + number * HOUR_NS)


def plan(
    listed: Collection[int], keep: int, *, durable_elsewhere: Collection[int] = (), in_use: Collection[int] = ()
) -> tuple[int, ...]:
    """Of snapshots that are all of one run."""
    known: dict[int, Saved | None] = {number: saved(number) for number in listed}
    return plan_retention(known, Keep(keep), durable_elsewhere=durable_elsewhere, in_use=in_use)


def of_runs(runs: Mapping[int, str]) -> dict[int, Saved | None]:
    """Snapshots by number; a run without a name is one of a manifest that cannot be read."""
    return {number: saved(number, run) if run else None for number, run in runs.items()}


def of_steps(*steps: int | None) -> dict[int, Saved | None]:
    """Snapshots 1, 2, … whose trees have these as their newest step, a minute apart."""
    return {
        number: saved(number, step=step, at=AT + number * 60 * 10**9) for number, step in enumerate(steps, start=1)
    }


numbers = st.sets(st.integers(1, 30), max_size=12)
keeps = st.integers(1, 5)


def test_the_newest_stay_and_the_others_go_oldest_first() -> None:
    assert plan([1, 2, 3, 4], 2) == (1, 2)


def test_what_is_durable_elsewhere_stays_until_something_newer_is() -> None:
    assert plan([1, 2, 3, 4, 5], 2, durable_elsewhere={2}) == (1, 3)
    assert plan([2, 4, 5], 2, durable_elsewhere={2}) == ()
    assert plan([2, 4, 5], 2, durable_elsewhere={2, 4}) == (2,)


def test_the_newest_are_those_with_the_highest_numbers_whatever_the_clocks_say() -> None:
    listed: dict[int, Saved | None] = {1: saved(1), 2: saved(2, at=AT + 99 * HOUR_NS), 3: saved(3), 4: saved(4)}
    assert plan_retention(listed, Keep(2)) == (1, 2)


def test_what_is_being_copied_stays() -> None:
    assert plan([1, 2, 3, 4], 1, in_use={2}) == (1, 3)


def test_a_tier_does_not_fill_up_while_nothing_farther_away_answers() -> None:
    assert plan(range(1, 101), 2) == tuple(range(1, 99))


@given(numbers, keeps, numbers, numbers)
def test_whatever_is_given_up_was_listed_and_is_none_of_what_must_stay(
    listed: set[int], keep: int, durable_elsewhere: set[int], in_use: set[int]
) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere, in_use=in_use)
    assert list(given_up) == sorted(set(given_up))
    assert set(given_up) <= listed
    assert not set(given_up) & set(sorted(listed)[-keep:])
    assert not set(given_up) & in_use
    assert all(any(newer > number for newer in listed) for number in given_up)


@given(numbers, keeps, numbers)
def test_the_newest_that_is_durable_elsewhere_is_never_given_up_before_a_newer_one_is_there(
    listed: set[int], keep: int, durable_elsewhere: set[int]
) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere)
    for number in set(given_up) & durable_elsewhere:
        assert any(newer > number for newer in durable_elsewhere)


@given(numbers, keeps, numbers)
def test_nothing_more_is_given_up_after_it_was_done(listed: set[int], keep: int, durable_elsewhere: set[int]) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere)
    assert plan(listed - set(given_up), keep, durable_elsewhere=durable_elsewhere) == ()


@given(numbers, keeps, numbers)
def test_at_most_the_kept_ones_and_one_more_remain(listed: set[int], keep: int, durable_elsewhere: set[int]) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere)
    assert len(listed) - len(given_up) <= keep + 1


def test_the_last_state_of_an_earlier_run_stays() -> None:
    assert plan_retention(of_runs({1: "old", 2: "old", 3: "new", 4: "new", 5: "new"}), Keep(2)) == (1, 3)


def test_only_the_newest_run_keeps_several() -> None:
    runs = of_runs({1: "a", 2: "a", 3: "b", 4: "b", 5: "a"})
    assert plan_retention(runs, Keep(3)) == (3,)


def test_what_cannot_be_read_pushes_nothing_out() -> None:
    assert plan_retention(of_runs({1: "a", 2: "", 3: "", 4: "a"}), Keep(2)) == (2,)


@given(st.dictionaries(st.integers(1, 30), st.sampled_from(["a", "b", ""]), max_size=12), keeps)
def test_no_run_is_given_up_whole(listed: dict[int, str], keep: int) -> None:
    given_up = plan_retention(of_runs(listed), Keep(keep))
    assert {run for number, run in listed.items() if number not in given_up} == set(listed.values())


def test_the_snapshots_of_one_save_count_as_one() -> None:
    assert plan_retention(of_steps(100, 100, 200, 200, 300, 300, 300), Keep(2)) == (1, 2, 3, 5, 6)


def test_the_moment_between_two_steps_counts_for_nothing_unless_it_is_the_newest() -> None:
    assert plan_retention(of_steps(100, None, 200, None, 300), Keep(2)) == (1, 2, 4)
    assert plan_retention(of_steps(100, 200, None), Keep(2)) == ()


def test_a_tree_that_changes_for_hours_under_one_step_is_saved_more_than_once() -> None:
    listed: dict[int, Saved | None] = {number: saved(number, step=500) for number in range(1, 5)}
    assert plan_retention(listed, Keep(2)) == (1, 2)


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(1), {"2026-03-02 10:30"}),
        (Keep(2), {"2026-03-02 10:30", "2026-03-02 10:05"}),
        (Keep(1, hourly=2), {"2026-03-02 10:30", "2026-03-02 09:59"}),
        (Keep(1, daily=3), {"2026-03-02 10:30", "2026-03-01 23:59", "2026-02-20 12:00"}),
        (Keep(1, weekly=2), {"2026-03-02 10:30", "2026-03-01 23:59"}),
        (Keep(1, monthly=2), {"2026-03-02 10:30", "2026-02-20 12:00"}),
        (Keep(1, monthly=9), {"2026-03-02 10:30", "2026-02-20 12:00"}),
    ],
)
def test_of_each_hour_day_week_or_month_the_last_one_stays(keep: Keep, stay: set[str]) -> None:
    texts = ["2026-02-20 11:00", "2026-02-20 12:00", "2026-03-01 00:00", "2026-03-01 23:59",
             "2026-03-02 09:59", "2026-03-02 10:05", "2026-03-02 10:30"]  # fmt: skip
    assert choose_kept({text: moment(text) for text in texts}, keep) == stay


counts = st.integers(0, 4)
any_keep = st.builds(Keep, st.integers(1, 4), hourly=counts, daily=counts, weekly=counts, monthly=counts)


@given(st.dictionaries(st.integers(0, 99), st.integers(0, 10**19 % (1 << 62)), max_size=20), any_keep)
def test_whatever_is_kept_the_newest_are_and_not_more_than_all_counts_together(
    moments: dict[int, int], keep: Keep
) -> None:
    stay = choose_kept(moments, keep)
    assert stay <= moments.keys()
    at_most = keep.last + keep.hourly + keep.daily + keep.weekly + keep.monthly
    assert min(len(moments), keep.last) <= len(stay) <= at_most
    assert not moments or max(moments.values()) in {moments[one] for one in stay}
    assert choose_kept({one: moments[one] for one in stay}, keep) == stay


def record(step: int | None, run: str = "llama", *, at: int = 0, **numbers: int) -> Checkpoint:
    snapshots = {name.removeprefix("r"): number for name, number in numbers.items()}
    return Checkpoint(JOB, Lineage(run), step, at or AT + (step or 0) * HOUR_NS, snapshots)


def listed_of(*several: Saved) -> dict[SnapshotId, Saved | None]:
    return {one.id: one for one in several}


def test_a_job_keeps_its_newest_complete_checkpoints_and_what_may_become_one() -> None:
    listed = listed_of(
        *(saved(number, step=number, replica=replica) for replica in "01" for number in (1, 2, 3)),
        saved(4, step=4, replica="0"),
    )
    records = {str(step): record(step, r0=step, r1=step) for step in (1, 2, 3)}
    plan = plan_job_retention(listed, records, Keep(2))
    assert plan.records == ("1",)
    assert {str(one) for one in plan.snapshots} == {"default/llama/0@1", "default/llama/1@1"}


def test_an_incomplete_step_never_pushes_a_complete_checkpoint_out() -> None:
    listed = listed_of(
        saved(1, step=1, replica="0"), saved(1, step=1, replica="1"),
        *(saved(number, step=number, replica="0") for number in range(2, 30)),
    )  # fmt: skip
    plan = plan_job_retention(listed, {"one": record(1, r0=1, r1=1)}, Keep(2))
    assert plan.records == ()
    kept = listed.keys() - set(plan.snapshots)
    assert sorted(str(one) for one in kept) == [
        "default/llama/0@1", "default/llama/0@28", "default/llama/0@29", "default/llama/1@1",
    ]  # fmt: skip


def test_a_checkpoint_that_was_recorded_twice_counts_once_as_its_later_record() -> None:
    listed = listed_of(*(saved(number, step=1, at=AT + number) for number in (1, 2)))
    records = {"early": record(1, at=AT + 1, r0=1), "late": record(1, at=AT + 2, r0=2)}
    plan = plan_job_retention(listed, records, Keep(5))
    assert (plan.records, [one.number for one in plan.snapshots]) == (("early",), [1])


def test_what_this_version_cannot_read_is_not_given_up_in_the_bucket() -> None:
    listed = dict.fromkeys(listed_of(*map(saved, (1, 2, 3)))) | listed_of(saved(4), saved(5), saved(6))
    assert [one.number for one in plan_job_retention(listed, {}, Keep(1)).snapshots] == [4, 5]


def test_a_record_whose_snapshots_are_gone_is_no_checkpoint() -> None:
    listed = listed_of(saved(1, step=1), saved(2, step=2))
    records = {"good": record(1, r0=1), "broken": record(3, r0=3)}
    assert plan_job_retention(listed, records, Keep(5)).records == ("broken",)


def test_what_is_being_restored_stays_and_so_does_an_earlier_runs_last_checkpoint() -> None:
    listed = listed_of(
        saved(1, "old", 1), saved(2, "old", 2),
        saved(3, "new", 1), saved(4, "new", 2), saved(5, "new", 3),
    )  # fmt: skip
    records = {
        "o1": record(1, "old", r0=1), "o2": record(2, "old", r0=2),
        "n1": record(1, "new", at=AT + 3 * HOUR_NS, r0=3), "n2": record(2, "new", at=AT + 4 * HOUR_NS, r0=4),
        "n3": record(3, "new", at=AT + 5 * HOUR_NS, r0=5),
    }  # fmt: skip
    plan = plan_job_retention(listed, records, Keep(1), in_use={SnapshotId(JOB.identity("0"), 3)})
    assert plan.records == ("n1", "n2", "o1")
    assert [one.number for one in plan.snapshots] == [1, 4]


rows = st.lists(
    st.tuples(st.sampled_from("01"), st.integers(1, 12), st.sampled_from(["a", "b"]), st.none() | st.integers(1, 5)),
    max_size=24,
)


@given(rows, any_keep, st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=6), st.data())
def test_whatever_a_job_has_its_newest_complete_checkpoint_and_each_volumes_newest_snapshot_stay(
    rows: list[tuple[str, int, str, int | None]], keep: Keep, pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    listed = listed_of(*(saved(number, run, step, replica=replica) for replica, number, run, step in rows))
    records = {
        f"{index}": record(index, "a", at=AT + max(pair) * HOUR_NS + index, r0=pair[0], r1=pair[1])
        for index, pair in enumerate(pairs)
    }
    in_use = set(data.draw(st.lists(st.sampled_from(sorted(listed)), max_size=3))) if listed else set()
    plan = plan_job_retention(listed, records, keep, in_use=in_use)
    kept = listed.keys() - set(plan.snapshots)
    whole = {name: one for name, one in records.items() if one.ids <= listed.keys()}
    assert in_use <= kept
    assert set(plan.records) >= records.keys() - whole.keys()
    for name in records.keys() - set(plan.records):
        assert records[name].ids <= kept, "what a record that stays names must stay"
    if whole:
        newest = max(whole, key=lambda name: whole[name].created_ns)
        assert newest not in plan.records
    for replica in {one.identity.replica for one in listed}:
        numbers = [one.number for one in listed if one.identity.replica == replica]
        assert SnapshotId(JOB.identity(replica), max(numbers)) in kept
    again = plan_job_retention(
        {one: listed[one] for one in kept},
        {name: one for name, one in records.items() if name not in plan.records},
        keep,
        in_use=in_use,
    )
    assert not again
