"""The coordinator's picture: names, leases, claims, and who has what. Time is a number here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.nodes import FORGET_SECONDS, Change
from fuse_tier.coordinate.ownership import Conflict
from fuse_tier.errors import IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, LocalFacts, Report

LEASE = 5.0
NOWHERE = Domain()
LLAMA = Identity.parse("default/llama/0")
GEMMA = Identity.parse("default/gemma/0")
_calls = itertools.count(1)


def report(
    node: str,
    *,
    instance: str = "",
    control: str = "",
    sequence: int = 0,
    mounted: frozenset[Identity] = frozenset(),
    holdings: Mapping[Identity, tuple[int, ...]] | None = None,
    bucket: Mapping[Identity, tuple[int, ...]] | None = None,
    leaving: bool = False,
    users: Mapping[Identity, str] | None = None,
    domain: Domain = NOWHERE,
) -> Report:
    return Report(
        node=node,
        instance=instance or f"{node}1",
        sequence=sequence or next(_calls),
        control=control or f"{node}:7460",
        bulk=f"{node}:7461",
        facts=LocalFacts(1000, 500, mounted, holdings or {}, bucket or {}, users=users or {}),
        leaving=leaving,
        domain=domain,
    )


def settled(*nodes: str) -> Directory:
    """A directory whose first lease is over; at 10 s these nodes have just reported."""
    directory = Directory(LEASE, now=0.0)
    for now in (2.0, 4.0, 6.0, 8.0, 10.0):
        for node in nodes:
            directory.report(report(node), now)
        directory.expire(now)
    return directory


def claim(directory: Directory, identity: Identity, node: str, now: float, instance: str = "") -> None:
    directory.claim(identity, node, instance or f"{node}1", next(_calls), now)


def test_a_node_is_alive_for_one_lease_after_each_report() -> None:
    directory = settled("a")
    assert directory.nodes.members(14.9)[0].alive
    assert not directory.nodes.members(15.0)[0].alive


def test_a_node_that_stops_reporting_is_announced_once_and_forgotten_much_later() -> None:
    directory = settled("a")
    seen = [directory.expire(now) for now in (12.0, 14.0, 15.0, 17.0)]
    assert seen == [(), (), ("a",), ()]
    assert [member.node for member in directory.nodes.members(17.0)] == ["a"]
    now = 17.0
    while now < 15.0 + FORGET_SECONDS:
        now += 2.0
        directory.expire(now)
    assert directory.nodes.members(now) == ()


def test_a_second_node_of_the_same_name_is_refused_while_the_first_is_alive() -> None:
    directory = settled("a")
    with pytest.raises(TierRefused) as refused:
        directory.report(report("a", instance="other", control="elsewhere:7460"), 12.0)
    for part in ("'a'", "a:7460", "elsewhere:7460", "node.yaml", "3.0 s"):
        assert part in str(refused.value)
    assert directory.nodes.members(12.0)[0].control == "a:7460"


def test_a_name_is_free_for_another_address_once_the_lease_has_ended() -> None:
    directory = settled("a")
    for now in (12.0, 14.0):
        directory.expire(now)
    moved = directory.report(report("a", instance="other", control="elsewhere:7460"), 15.0)
    assert moved.change is Change.RESTARTED
    assert directory.nodes.members(15.0)[0].control == "elsewhere:7460"


def test_a_worker_that_starts_again_is_accepted_at_once_and_its_predecessor_no_more() -> None:
    directory = settled("a")
    assert directory.report(report("a", instance="a2"), 10.5).change is Change.RESTARTED
    with pytest.raises(TierRefused, match="taken over"):
        directory.report(report("a", instance="a1"), 10.6)
    assert directory.nodes.members(10.6)[0].instance == "a2"


def test_a_late_report_of_an_earlier_life_takes_nothing_over_even_when_the_lease_has_ended() -> None:
    directory = settled("a")
    directory.report(report("a", instance="a2"), 10.5)
    for now in (12.0, 14.0, 16.0):
        directory.expire(now)
    with pytest.raises(TierRefused, match="taken over"):
        directory.report(report("a", instance="a1"), 16.0)
    assert directory.report(report("a", instance="a2"), 16.1).change is Change.RETURNED


def test_a_node_of_another_address_is_back_in_full_after_the_lease_of_who_had_its_name() -> None:
    directory = settled("a")
    for now in (12.0, 14.0):
        directory.expire(now)
    directory.report(report("a", instance="other", control="elsewhere:7460"), 15.0)
    for now in (17.0, 19.0):
        directory.expire(now)
    directory.report(report("a", instance="a1"), 20.0)
    claim(directory, LLAMA, "a", 20.1)


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    directory = settled()
    directory.report(report("a", sequence=7, mounted=frozenset({LLAMA})), 10.0)
    with pytest.raises(TierRefused, match="overtaken"):
        directory.report(report("a", sequence=6), 10.1)
    assert directory.nodes.members(10.1)[0].mounted == {LLAMA}


def test_an_identity_is_granted_to_one_node_and_the_refusal_names_it() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    with pytest.raises(IdentityBusy, match=r"default/llama/0 is mounted on node a \(a:7460\), seen there for 2 s"):
        claim(directory, LLAMA, "b", 12.0)


def test_the_node_that_has_an_identity_may_claim_it_again() -> None:
    directory = settled("a")
    claim(directory, LLAMA, "a", 10.0)
    claim(directory, LLAMA, "a", 11.0)


def test_an_identity_is_free_again_after_its_release() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    directory.release(LLAMA, "a", "a1", next(_calls), 10.5)
    claim(directory, LLAMA, "b", 10.6)


def test_what_a_node_has_given_back_is_found_there_by_who_claims_next() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.1)
    directory.report(report("a", mounted=frozenset({LLAMA, GEMMA}), holdings={LLAMA: (1, 2)}), 10.2)
    directory.release(LLAMA, "a", "a1", next(_calls), 10.3)
    claim(directory, LLAMA, "b", 10.4)
    ((member, numbers),) = directory.locate(LLAMA, 10.5).holders
    assert (member.node, numbers) == ("a", (1, 2))
    assert member.mounted == {GEMMA}


def test_nobody_releases_what_another_node_has() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    directory.release(LLAMA, "b", "b1", next(_calls), 10.5)
    with pytest.raises(IdentityBusy):
        claim(directory, LLAMA, "b", 10.6)


def test_an_identity_is_free_when_the_lease_of_its_node_has_ended() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    for now in (12.0, 14.0):
        directory.report(report("b"), now)
    with pytest.raises(IdentityBusy):
        claim(directory, LLAMA, "b", 14.9)
    claim(directory, LLAMA, "b", 15.0)


def test_a_node_that_leaves_gives_everything_back_at_once() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    assert directory.report(report("a", leaving=True), 10.1).change is Change.LEFT
    claim(directory, LLAMA, "b", 10.2)
    assert directory.expire(10.3) == (), "it is not announced as gone"
    assert [member.alive for member in directory.nodes.members(10.3)] == [False, True]


def test_a_report_that_does_not_list_a_claim_gives_it_back() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    directory.report(report("a"), 10.5)
    claim(directory, LLAMA, "b", 10.6)


def test_a_claim_that_was_overtaken_by_a_report_is_void() -> None:
    directory = settled("a", "b")
    late = next(_calls)
    directory.report(report("a"), 10.5)
    with pytest.raises(TierRefused, match="overtaken"):
        directory.claim(LLAMA, "a", "a1", late, 10.6)
    claim(directory, LLAMA, "b", 10.7)


def test_a_worker_that_starts_again_keeps_what_it_reports_and_loses_the_rest() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    claim(directory, GEMMA, "a", 10.1)
    directory.report(report("a", instance="a2", mounted=frozenset({LLAMA})), 10.5)
    with pytest.raises(IdentityBusy):
        claim(directory, LLAMA, "b", 10.6)
    claim(directory, GEMMA, "b", 10.6)


def test_after_a_start_nothing_is_granted_for_one_lease_and_what_is_reported_is_kept_from_others() -> None:
    directory = Directory(LEASE, now=0.0)
    directory.report(report("a"), 1.0)
    with pytest.raises(TierUnavailable, match=r"4\.0 s"):
        claim(directory, LLAMA, "a", 1.0)
    directory.report(report("b", mounted=frozenset({GEMMA})), 2.0)
    with pytest.raises(TierUnavailable, match=r"3\.0 s"):
        claim(directory, GEMMA, "b", 2.0)
    with pytest.raises(IdentityBusy):
        claim(directory, GEMMA, "a", 2.5)
    directory.report(report("a"), 4.0)
    claim(directory, LLAMA, "a", 5.0)
    claim(directory, GEMMA, "b", 5.0)


def test_a_node_must_have_reported_before_it_claims() -> None:
    with pytest.raises(TierUnavailable, match="no report of node z"):
        claim(settled("a"), LLAMA, "z", 10.0)


def test_a_worker_that_starts_again_must_have_reported_before_it_claims() -> None:
    with pytest.raises(TierUnavailable, match="no report of node a"):
        claim(settled("a"), LLAMA, "a", 10.0, instance="a2")


def test_a_worker_that_was_replaced_claims_nothing() -> None:
    directory = settled("a")
    directory.report(report("a", instance="a2"), 10.0)
    with pytest.raises(TierRefused, match="another process"):
        claim(directory, LLAMA, "a", 10.0)


def test_of_two_nodes_that_have_one_identity_mounted_the_first_keeps_it_and_it_is_told_once() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    both = frozenset({LLAMA})
    directory.report(report("a", mounted=both), 10.5)
    assert directory.report(report("b", mounted=both), 10.6).conflicts == (Conflict(LLAMA, "a", "b"),)
    assert directory.report(report("b", mounted=both), 11.6).conflicts == ()
    directory.report(report("a"), 11.7)
    directory.report(report("b", mounted=both), 11.8)
    assert directory.granted("b", 11.8) == {}
    directory.claim(LLAMA, "b", "b1", next(_calls), 11.8, goes_on=0)
    with pytest.raises(IdentityBusy, match="node b"):
        claim(directory, LLAMA, "a", 11.9)


def test_time_in_which_the_coordinator_was_stopped_counts_against_no_node() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    with pytest.raises(IdentityBusy):
        claim(directory, LLAMA, "b", 60.0)


def test_a_snapshot_is_located_on_those_that_list_it_live_ones_first() -> None:
    directory = settled()
    directory.report(report("a", holdings={LLAMA: (1, 4)}, bucket={LLAMA: (1,)}), 10.0)
    for now in (12.0, 14.0):
        directory.expire(now)
    directory.report(report("b", holdings={LLAMA: (2, 3)}), 14.5)
    directory.report(report("c", holdings={GEMMA: (1,)}, bucket={LLAMA: (2,)}), 14.5)
    found = directory.locate(LLAMA, 15.5)
    assert [(member.node, member.alive, numbers) for member, numbers in found.holders] == [
        ("b", True, (2, 3)),
        ("a", False, (1, 4)),
    ]
    assert found.bucket == (1, 2)


def test_a_node_that_comes_back_without_its_ram_is_no_holder() -> None:
    directory = settled()
    directory.report(report("a", holdings={LLAMA: (1,)}), 10.0)
    directory.report(report("a", instance="a2"), 11.0)
    assert directory.locate(LLAMA, 11.0).holders == ()


def test_the_picture_has_every_volume_mounted_or_held() -> None:
    directory = settled("a")
    directory.report(report("b", holdings={GEMMA: (1,)}), 10.0)
    claim(directory, LLAMA, "a", 10.0)
    picture = directory.picture(10.1)
    assert [member.node for member in picture.members] == ["a", "b"]
    assert [(str(volume.identity), volume.mounted_on) for volume in picture.volumes] == [
        ("default/gemma/0", ""),
        ("default/llama/0", "a"),
    ]


def test_what_was_copied_is_remembered_when_the_nodes_with_the_copies_have_lost_them() -> None:
    directory = settled()
    directory.report(report("a", mounted=frozenset({LLAMA}), holdings={LLAMA: (1, 2, 3)}), 10.0)
    assert directory.locate(LLAMA, 10.0).copied == 0
    directory.report(report("b", holdings={LLAMA: (2,)}), 10.0)
    directory.report(report("b", instance="b2"), 11.0)
    assert directory.locate(LLAMA, 11.0).copied == 2


def test_who_had_a_volume_under_which_epoch_is_known_until_the_node_is_forgotten() -> None:
    directory = settled("a", "b")
    assert directory.locate(LLAMA, 10.0).owners == {}
    claim(directory, LLAMA, "a", 10.0)
    first = directory.granted("a", 10.0)[LLAMA]
    directory.report(report("a", holdings={LLAMA: (1,)}), 10.1)
    claim(directory, LLAMA, "b", 10.2)
    second = directory.granted("b", 10.2)[LLAMA]
    directory.report(report("b", holdings={LLAMA: (1,)}), 10.3)
    assert directory.locate(LLAMA, 10.3).owners == {first: "a", second: "b"}
    now, seen = 10.3, []
    while now < 15.0 + FORGET_SECONDS:  # in which nothing is heard of the first
        now += 1.5
        directory.report(report("b", holdings={LLAMA: (1,)}), now)
        directory.expire(now)
        seen.append(directory.locate(LLAMA, now).owners)
    assert seen[:2000] == [{first: "a", second: "b"}] * 2000
    assert seen[-1] == {second: "b"}


def test_once_an_owner_is_forgotten_nobody_is_remembered_from_before_it_either() -> None:
    """Of a snapshot of its epoch it must not look as if another than the owner of that time had brought it."""
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    directory.report(report("a", holdings={LLAMA: (1,)}), 10.1)
    claim(directory, LLAMA, "b", 10.2)
    assert list(directory.locate(LLAMA, 10.2).owners.values()) == ["a", "b"]
    now = 10.2
    while now < 20.0 + FORGET_SECONDS:
        now += 1.5
        directory.report(report("a", holdings={LLAMA: (1,)}), now)
        directory.expire(now)
    assert directory.locate(LLAMA, now).owners == {}


def test_only_the_last_epochs_of_a_volume_are_remembered() -> None:
    directory, granted = settled("a", "b"), []
    for turn in range(20):
        now, node = 10.0 + turn, "ab"[turn % 2]
        directory.report(report("a"), now)
        directory.report(report("b"), now)
        claim(directory, LLAMA, node, now)
        granted.append((directory.granted(node, now)[LLAMA], node))
        directory.report(report(node), now + 0.1)
    assert directory.locate(LLAMA, 30.0).owners == dict(granted[-8:])


def test_a_coordinator_that_has_just_started_says_that_it_may_not_know_all_holders() -> None:
    directory = Directory(LEASE, now=0.0)
    directory.report(report("a", holdings={LLAMA: (1,)}), 1.0)
    assert not directory.locate(LLAMA, 4.9).is_settled
    assert directory.locate(LLAMA, 5.0).is_settled


def test_who_has_a_volume_mounted_that_is_another_nodes_is_no_holder() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    directory.report(report("a", mounted=frozenset({LLAMA}), holdings={LLAMA: (57,)}), 11.0)
    directory.report(report("b", mounted=frozenset({LLAMA}), holdings={LLAMA: (58,)}), 11.0)
    assert [holder.node for holder, _ in directory.locate(LLAMA, 11.0).holders] == ["a"]


def test_who_had_a_volume_before_another_is_a_holder_of_all_when_nobody_else_has_anything() -> None:
    directory = settled("a", "b")
    claim(directory, LLAMA, "a", 10.0)
    directory.report(report("b", mounted=frozenset({LLAMA}), holdings={LLAMA: (57, 58)}), 11.0)
    ((before, numbers),) = directory.locate(LLAMA, 11.0).holders
    assert (before.node, numbers) == ("b", (57, 58))
    directory.report(report("a", mounted=frozenset({LLAMA}), bucket={LLAMA: (57,)}), 11.5)
    assert directory.locate(LLAMA, 11.5).holders == ()


def test_of_who_had_a_volume_before_another_what_was_copied_counts_though_the_copies_are_gone() -> None:
    directory = settled("a", "b", "c")
    directory.report(report("b", mounted=frozenset({LLAMA}), holdings={LLAMA: (1, 2, 3)}), 10.0)
    directory.report(report("c", holdings={LLAMA: (1, 2)}), 10.0)
    directory.report(report("c", instance="c2", holdings={LLAMA: (1,)}), 11.0)
    for now in (12.0, 14.0, 16.0):  # while nothing is heard of b
        directory.report(report("a"), now)
        directory.report(report("c", instance="c2", holdings={LLAMA: (1,)}), now)
    claim(directory, LLAMA, "a", 16.1)
    _, (gone, numbers) = directory.locate(LLAMA, 16.2).holders
    assert (gone.node, gone.alive, numbers) == ("b", False, (1, 2))
    directory.report(report("b", mounted=frozenset({LLAMA}), holdings={LLAMA: (1, 2, 3, 4)}), 16.3)
    (back, numbers), _ = directory.locate(LLAMA, 16.4).holders
    assert (back.node, back.alive, numbers) == ("b", True, (1, 2))


def test_who_has_an_identity_is_named_with_its_node() -> None:
    directory = settled("a", "b")
    directory.report(report("a", mounted=frozenset({LLAMA}), users={LLAMA: "pod default/llama-0 (uid-0)"}), 10.5)
    with pytest.raises(
        IdentityBusy, match=r"is mounted on node a \(a:7460\) for pod default/llama-0 \(uid-0\), seen"
    ):
        claim(directory, LLAMA, "b", 10.6)
    directory.report(report("a", mounted=frozenset({LLAMA})), 10.7)
    with pytest.raises(IdentityBusy, match=r"is mounted on node a \(a:7460\), seen"):
        claim(directory, LLAMA, "b", 10.8)


def test_what_others_know_of_a_nodes_failure_domain_counts_before_what_it_says_itself() -> None:
    labels = {"a": Domain(zone="z", host="by-label")}
    directory = Directory(LEASE, now=0.0, domain_of=lambda node: labels.get(node, Domain()))
    for node in ("a", "b"):
        directory.report(report(node, domain=Domain(pool="own", host="10.0.0.1")), 1.0)
    a, b = directory.nodes.members(1.0)
    assert (a.domain, b.domain) == (Domain("z", "own", "by-label"), Domain("", "own", "10.0.0.1"))
    assert directory.nodes.known_domain("b") == Domain()
