"""Under which epochs volumes change hands, and whose word counts when a coordinator starts that knows nothing."""

from __future__ import annotations

import pytest

from fuse_tier.coordinate.ownership import Conflict, Ownerships
from fuse_tier.epochs import HIGHEST, SNAPSHOTS, EpochClock, epoch_of, number_after, number_before
from fuse_tier.errors import IdentityBusy, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId

LLAMA = Identity.parse("default/llama/0")
GEMMA = Identity.parse("default/gemma/0")
BEGUN = 1000  # what the clock says at time 0
SETTLED_AT = 5.0


class Cluster:
    """Ownerships, and who is alive."""

    def __init__(self, clock: int = BEGUN) -> None:
        self.alive = {"a", "b"}
        self.clock = EpochClock(clock, 0.0)
        self.owned = Ownerships(self.clock, SETTLED_AT, 2.0, self.alive.__contains__)

    def lists(self, number: int, now: float) -> None:
        self.owned.hear(0, [{LLAMA: (number,)}], now)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_snapshots_from_before_there_were_epochs_are_of_epoch_0() -> None:
    assert SnapshotId(LLAMA, 4001).epoch == 0


def test_every_snapshot_of_an_epoch_is_newer_than_all_of_the_epoch_before() -> None:
    assert number_after(7) == number_before(8) == 8 * SNAPSHOTS
    assert epoch_of(number_before(8) + 1) == epoch_of(number_after(8) - 1) == 8


def test_each_owner_has_an_epoch_above_that_of_the_one_before(cluster: Cluster) -> None:
    first = cluster.owned.grant(LLAMA, "a", None, 0, 6.0)
    assert cluster.owned.grant(LLAMA, "a", None, 0, 6.1) == first
    cluster.owned.release(LLAMA, "a")
    assert cluster.owned.grant(LLAMA, "b", None, 0, 6.1) > first


def test_epochs_do_not_run_ahead_of_the_time_further_than_a_restart_takes(cluster: Cluster) -> None:
    with pytest.raises(TierUnavailable, match="too often"):
        for _ in range(5):
            cluster.owned.grant(LLAMA, "a", None, 0, 6.0)
            cluster.owned.release(LLAMA, "a")


def test_an_epoch_is_above_what_the_node_has_seen_elsewhere(cluster: Cluster) -> None:
    assert cluster.owned.grant(LLAMA, "a", None, 5000, 6.0) == 5001


def test_an_epoch_out_of_all_reason_takes_no_other_volume_along(cluster: Cluster) -> None:
    far = HIGHEST - 5
    cluster.lists(number_before(far) + 1, 1.0)
    assert cluster.owned.grant(GEMMA, "a", None, 0, 6.0) < BEGUN + 10
    assert cluster.owned.grant(LLAMA, "a", None, 0, 6.0) == far + 1


def test_a_clock_that_was_set_back_goes_on_above_what_nodes_have_heard_of() -> None:
    cluster = Cluster(clock=1)
    cluster.owned.hear(90_000, [], 1.0)
    assert cluster.owned.grant(LLAMA, "a", None, 0, 6.0) > 90_000


@pytest.mark.parametrize("first", ["a", "b"])
def test_after_a_restart_the_last_owner_has_it_whoever_reports_first(cluster: Cluster, first: str) -> None:
    epochs = {"a": 10, "b": 20}
    for node in (first, *(epochs.keys() - {first})):
        cluster.owned.take(node, {LLAMA: epochs[node]}, 1.0)
    owner = cluster.owned.of(LLAMA)
    assert owner is not None
    assert owner.node == "b"


def test_who_is_overtaken_by_a_later_owner_is_told_of(cluster: Cluster) -> None:
    cluster.owned.take("a", {LLAMA: 10}, 1.0)
    assert cluster.owned.take("b", {LLAMA: 20}, 1.0) == {Conflict(LLAMA, "b", "a")}


def test_an_ownership_from_before_counts_for_certain_only_when_all_have_reported(cluster: Cluster) -> None:
    cluster.owned.take("a", {LLAMA: 10}, 1.0)
    assert cluster.owned.by("a", 1.0) == {}
    with pytest.raises(TierUnavailable):
        cluster.owned.grant(LLAMA, "a", 10, 0, 1.0)
    cluster.owned.take("a", {LLAMA: 10}, SETTLED_AT)
    assert cluster.owned.by("a", SETTLED_AT)[LLAMA] >= BEGUN


def test_who_comes_too_late_with_an_epoch_from_before_has_lost_it(cluster: Cluster) -> None:
    for now in (1.0, SETTLED_AT):
        cluster.owned.take("a", {LLAMA: 10}, now)
    assert cluster.owned.take("b", {LLAMA: 20}, 6.0) == {Conflict(LLAMA, "a", "b")}


def test_nobody_goes_on_below_a_snapshot_that_is_listed_somewhere(cluster: Cluster) -> None:
    cluster.lists(number_before(20) + 1, 1.0)
    cluster.owned.take("a", {LLAMA: 10}, 6.0)
    assert cluster.owned.of(LLAMA) is None
    with pytest.raises(IdentityBusy, match="snapshots were taken there"):
        cluster.owned.grant(LLAMA, "a", 10, 0, 6.0)
    assert cluster.owned.grant(LLAMA, "a", None, 0, 6.0) > 20  # a new mount restores that snapshot first


def test_a_snapshot_heard_of_after_the_report_counts_all_the_same(cluster: Cluster) -> None:
    cluster.owned.take("a", {LLAMA: 10}, 1.0)
    cluster.lists(number_before(20) + 1, 2.0)
    cluster.owned.take("a", {LLAMA: 10}, 6.0)
    assert cluster.owned.of(LLAMA) is None


def test_who_was_counted_out_goes_on_under_another_epoch_when_its_successor_saved_nothing(cluster: Cluster) -> None:
    before = cluster.owned.grant(LLAMA, "a", None, 0, 6.0)
    cluster.lists(number_before(before) + 1, 6.0)
    cluster.alive.discard("a")
    between = cluster.owned.grant(LLAMA, "b", None, 0, 9.0)
    cluster.owned.release(LLAMA, "b")
    cluster.alive.add("a")
    cluster.owned.take("a", {LLAMA: before}, 12.0)
    assert cluster.owned.by("a", 12.0) == {}
    assert cluster.owned.grant(LLAMA, "a", before, 0, 12.0) > between


def test_what_no_node_has_anything_of_is_forgotten(cluster: Cluster) -> None:
    cluster.lists(number_before(20) + 1, 1.0)
    cluster.owned.forget_all_but(())
    cluster.owned.take("a", {LLAMA: 10}, 6.0)
    assert cluster.owned.of(LLAMA) is not None
