"""Which checkpoints of a job are complete where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.coordinate.standing import Held, standings
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.standing import Standing, merged, newest_by_tier

JOB = Job("default", "llama")
RUN = Lineage("llama", world_size=2)


def part(rank: int, step: int, lineage: Lineage = RUN) -> Saved:
    return Saved(SnapshotId(JOB.identity(str(rank)), step), lineage, step, 1000 * step + rank, 10)


def on(node: str, *parts: Saved, owns: int, is_alive: bool = True) -> Iterator[Held]:
    for one in parts:
        yield Held(one, is_alive, one.id.identity.replica != str(owns))


def test_a_step_is_complete_where_every_rank_has_it() -> None:
    a = on("a", part(0, 10), part(0, 20), part(1, 10), owns=0)
    b = on("b", part(1, 10), part(1, 20), part(0, 10), owns=1)
    assert standings(JOB, [*a, *b]) == (
        Standing(JOB, "llama", 2, 10, 10_001, 20, ("ram", "peer")),
        Standing(JOB, "llama", 2, 20, 20_001, 20, ("ram",)),
    )


def test_a_step_that_one_rank_lacks_is_none() -> None:
    assert standings(JOB, on("a", part(0, 10), owns=0)) == ()


def test_what_only_nodes_have_that_are_away_is_told_and_cannot_be_restored() -> None:
    a = on("a", part(0, 10), owns=0)
    b = on("b", part(1, 10), owns=1, is_alive=False)
    (found,) = standings(JOB, [*a, *b])
    assert (found.tiers, found.restorable) == ((), False)


def test_a_step_that_a_rank_has_beside_newer_ones_is_complete_and_bad_by_itself_alone() -> None:
    several = replace(part(0, 30), older=(10, 20))
    found = standings(JOB, on("a", several, part(1, 10), part(1, 30), owns=0), [(several.id, 30)])
    assert [(one.step, one.is_bad, one.restorable) for one in found] == [(10, False, True), (30, True, False)]


def test_a_step_of_which_a_part_is_bad_is_not_restored() -> None:
    (found,) = standings(JOB, on("a", part(0, 10), part(1, 10), owns=0), [(part(1, 10).id, 10)])
    assert (found.tiers, found.is_bad, found.restorable) == (("ram",), True, False)


def test_runs_and_shapes_are_told_apart() -> None:
    other = Lineage("other", world_size=2)
    a = on("a", part(0, 10), part(1, 20, other), owns=0)
    b = on("b", part(1, 10), part(0, 20, other), owns=1)
    assert [(one.run, one.step) for one in standings(JOB, [*a, *b])] == [("llama", 10), ("other", 20)]


def test_what_nodes_and_the_steward_tell_of_one_step_is_one_checkpoint_on_all_its_tiers() -> None:
    in_ram = Standing(JOB, "llama", 2, 10, 10_000, 20, ("ram", "peer"))
    in_bucket = Standing(JOB, "llama", 2, 10, 9_000, 0, ("bucket",))
    older = Standing(JOB, "llama", 2, 5, 5_000, 20, ("bucket",))
    assert merged([older, in_bucket, in_ram]) == (
        Standing(JOB, "llama", 2, 10, 10_000, 20, ("ram", "peer", "bucket")),
        older,
    )


def test_the_newest_of_each_tier_counts_and_none_that_is_bad() -> None:
    good = Standing(JOB, "llama", 2, 10, 10_000, 20, ("ram", "bucket"))
    newer = Standing(JOB, "llama", 2, 20, 20_000, 20, ("ram",))
    bad = Standing(JOB, "llama", 2, 30, 30_000, 20, ("ram", "bucket"), is_bad=True)
    assert newest_by_tier([good, newer, bad]) == {(JOB, "ram"): 20_000, (JOB, "bucket"): 10_000}
