"""What a full RAM tier gives up first, and what it never does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import Blob
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.replicate.eviction import Eviction, Listed, LiveFile, plan_eviction

OWN = Identity("default", "llama", "0")
OTHER = Identity("default", "llama", "1")


def blob(name: int, size: int = 10) -> Blob:
    return Blob(name.to_bytes(16, "big"), size)


def listed(
    number: int,
    *blobs: Blob,
    of: Identity = OWN,
    elsewhere: bool = False,
    in_use: bool = False,
    sent: bool = False,
) -> Listed:
    return Listed(SnapshotId(of, number), frozenset(blobs), of == OWN, elsewhere, in_use, sent)


def test_superseded_replicas_go_first_then_own_snapshots_that_are_elsewhere_then_files_that_the_bucket_has() -> None:
    replicas = [listed(1, blob(1), of=OTHER), listed(2, blob(2), of=OTHER)]
    own = [listed(1, blob(3), elsewhere=True), listed(2, blob(4), elsewhere=True)]
    file = LiveFile(OWN, 7, blob(4), 0)
    everything = replicas + own
    assert plan_eviction(everything, [file], 10, in_tree=[blob(4)]).drop == (SnapshotId(OTHER, 1),)
    assert plan_eviction(everything, [file], 20, in_tree=[blob(4)]).drop == (SnapshotId(OTHER, 1), SnapshotId(OWN, 1))
    last = plan_eviction(everything, [file], 30, in_tree=[blob(4)])
    assert last.files == (file,)
    assert last.freed == 30


def test_a_snapshot_that_is_nowhere_else_goes_only_when_a_job_waits() -> None:
    own = [listed(1, blob(1)), listed(2, blob(2))]
    assert plan_eviction(own, [], 10).drop == ()
    assert plan_eviction(own, [], 10, at_any_price=True).drop == (SnapshotId(OWN, 1),)


def test_what_is_on_its_way_to_a_peer_goes_last_and_only_when_a_job_waits() -> None:
    own = [
        listed(1, blob(1), elsewhere=True, sent=True),
        listed(2, blob(2), sent=True),
        listed(3, blob(3)),
        listed(4, blob(4), sent=True),
    ]
    file = LiveFile(OWN, 7, blob(4), 0)
    assert plan_eviction(own, [file], 40) == Eviction()
    all_of_it = plan_eviction(own, [file], 40, in_tree=[blob(4)], at_any_price=True)
    assert [snapshot.number for snapshot in all_of_it.drop] == [1, 3, 2, 4]
    assert all_of_it.files == (file,)


def test_content_that_another_volume_names_stays() -> None:
    shared = blob(1)
    both = [listed(1, shared, elsewhere=True), listed(1, shared, of=OTHER)]
    assert plan_eviction(both, [LiveFile(OWN, 7, shared, 0)], 10).files == ()


blobs = st.integers(1, 12).map(blob)
snapshots = st.builds(
    lambda number, content, of, elsewhere, in_use, sent: listed(
        number, *content, of=of, elsewhere=elsewhere, in_use=in_use, sent=sent
    ),
    st.integers(1, 6),
    st.sets(blobs, max_size=4),
    st.sampled_from([OWN, OTHER]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
tiers = st.lists(snapshots, max_size=8, unique_by=lambda one: one.snapshot)
live_files = st.sets(blobs, max_size=4).map(
    lambda found: [LiveFile(OWN, 100 + one.digest[-1], one, one.digest[-1]) for one in found]
)


@given(tiers, live_files, st.integers(0, 80), st.booleans())
def test_what_must_stay_stays_and_no_listed_snapshot_lacks_content(
    tier: list[Listed], live: list[LiveFile], needed: int, at_any_price: bool
) -> None:
    plan = plan_eviction(tier, live, needed, at_any_price=at_any_price)
    gone = set(plan.drop)
    assert len(gone) == len(plan.drop)
    by_id = {one.snapshot: one for one in tier}
    assert not any(by_id[one].in_use for one in gone)
    assert at_any_price or not any(by_id[one].sent and by_id[one].own for one in gone)
    for identity in (OWN, OTHER):
        of_it = [one.snapshot for one in tier if one.snapshot.identity == identity]
        if of_it and max(of_it) in gone:
            assert identity == OWN
            assert any(file.blob in by_id[max(of_it)].blobs for file in plan.files)
    for one in tier:
        if one.snapshot not in gone:
            assert not any(file.blob in one.blobs for file in plan.files)
    if not needed:
        assert not plan.drop


@given(tiers, live_files, st.integers(1, 80))
def test_what_is_said_to_come_free_does(tier: list[Listed], live: list[LiveFile], needed: int) -> None:
    in_tree = {file.blob for file in live}
    plan = plan_eviction(tier, live, needed, in_tree=in_tree)
    before = {blob for one in tier for blob in one.blobs} - in_tree
    after = {blob for one in tier if one.snapshot not in plan.drop for blob in one.blobs} - in_tree
    assert plan.freed == 10 * (len(before - after) + len(plan.files))
