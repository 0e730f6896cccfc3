"""Who holds copies: balance, stability, separation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Member
from fuse_tier.replicate.placement import choose_holders

labels = st.sampled_from(["", "x", "y", "z"])


def member(name: str, *, capacity: int = 1 << 30, domain: Domain = Domain(), alive: bool = True) -> Member:  # noqa: B008
    return Member(name, f"{name}1", f"{name}:1", f"{name}:2", alive, capacity, domain=domain)


def volume(number: int) -> Identity:
    return Identity("default", "llama", str(number))


members = st.lists(
    st.builds(
        member,
        st.integers(0, 40).map(lambda number: f"n{number}"),
        capacity=st.sampled_from([0, 1 << 30, 2 << 30, 64 << 30]),
        domain=st.builds(Domain, labels, labels, labels),
        alive=st.booleans(),
    ),
    unique_by=lambda one: one.node,
    max_size=15,
)
volumes = st.integers(0, 1000).map(volume)
owns = st.builds(member, st.just("n0"), domain=st.builds(Domain, labels, labels, labels))
counts = st.integers(0, 5)


@given(volumes, owns, members, counts)
def test_copies_go_to_distinct_live_nodes_with_room_and_never_to_the_own_one(
    identity: Identity, own: Member, others: list[Member], copies: int
) -> None:
    chosen = choose_holders(identity, own, others, copies)
    possible = {one.node for one in others if one.alive and one.capacity_bytes and one.node != own.node}
    assert len(set(chosen)) == len(chosen) == min(copies, len(possible))
    assert set(chosen) <= possible


@given(volumes, owns, members, counts)
def test_asking_for_fewer_gives_the_beginning_of_what_more_would(
    identity: Identity, own: Member, others: list[Member], copies: int
) -> None:
    assert choose_holders(identity, own, others, copies + 1)[:copies] == choose_holders(identity, own, others, copies)


@given(volumes, owns, members, counts)
def test_the_order_in_which_nodes_are_known_makes_no_difference(
    identity: Identity, own: Member, others: list[Member], copies: int
) -> None:
    shuffled = sorted(others, key=lambda one: one.node, reverse=True)
    assert choose_holders(identity, own, shuffled, copies) == choose_holders(identity, own, others, copies)


@given(volumes, owns, members, counts)
def test_a_node_that_goes_moves_only_what_it_held(
    identity: Identity, own: Member, others: list[Member], copies: int
) -> None:
    chosen = choose_holders(identity, own, others, copies)
    for gone in others:
        if gone.node not in chosen:
            rest = [one for one in others if one is not gone]
            assert choose_holders(identity, own, rest, copies) == chosen


@given(volumes, owns, members)
def test_a_node_that_comes_takes_over_or_changes_nothing(
    identity: Identity, own: Member, others: list[Member]
) -> None:
    others = [one for one in others if one.node != "new"]
    before = choose_holders(identity, own, others, 1)
    assert choose_holders(identity, own, [*others, member("new")], 1) in (before, ("new",))


@given(volumes, owns, members)
def test_how_free_a_node_is_moves_nothing(identity: Identity, own: Member, others: list[Member]) -> None:
    fuller = [replace(one, free_bytes=number) for number, one in enumerate(others)]
    assert choose_holders(identity, own, fuller, 2) == choose_holders(identity, own, others, 2)


@given(volumes)
def test_another_zone_comes_before_another_pool_before_another_host(identity: Identity) -> None:
    own = member("own", domain=Domain("z1", "p1", "h1"))
    others = [
        member("same-host", domain=Domain("z1", "p1", "h1")),
        member("same-pool", domain=Domain("z1", "p1", "h2")),
        member("same-zone", domain=Domain("z1", "p2", "h3")),
        member("elsewhere", domain=Domain("z2", "p3", "h4")),
    ]
    assert choose_holders(identity, own, others, 4) == ("elsewhere", "same-zone", "same-pool", "same-host")


@given(volumes)
def test_copies_are_kept_apart_from_each_other_too(identity: Identity) -> None:
    own = member("own", domain=Domain(pool="p0", host="h0"))
    others = [
        member(f"{pool}-{host}", domain=Domain(pool=pool, host=f"{pool}{host}"))
        for pool in "pqr"
        for host in range(4)
    ]
    chosen = choose_holders(identity, own, others, 3)
    assert {name[0] for name in chosen} == {"p", "q", "r"}


@given(volumes)
def test_nodes_of_which_nothing_is_known_share_nothing(identity: Identity) -> None:
    own = member("own")
    others = [member("unknown"), member("known", domain=Domain(host="h"))]
    assert len(choose_holders(identity, own, others, 2)) == 2


def test_equal_nodes_hold_about_equally_much() -> None:
    own = member("own")
    others = [member(f"n{number}") for number in range(20)]
    load = Counter(choose_holders(volume(number), own, others, 1)[0] for number in range(4000))
    assert len(load) == 20
    assert max(load.values()) < 1.4 * 200
    assert min(load.values()) > 0.6 * 200


def test_a_node_of_three_times_the_capacity_holds_about_three_times_as_much() -> None:
    own = member("own")
    others = [member("small"), member("large", capacity=3 << 30)]
    load = Counter(choose_holders(volume(number), own, others, 1)[0] for number in range(4000))
    assert 2.5 < load["large"] / load["small"] < 3.5
