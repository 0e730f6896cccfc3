"""Who holds copies: balance, stability, separation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Member
from fuse_tier.replicate.placement import choose_all, choose_holders, volumes_of

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


def cluster(pools: int, hosts: int, zones: int = 2) -> list[Member]:
    """A node for each host, each with a volume mounted."""
    return [
        replace(
            member(f"{pool}-{host}", domain=Domain(f"zone{pool % zones}", f"pool{pool}", f"host{pool}-{host}")),
            mounted=frozenset({volume(pool * hosts + host)}),
        )
        for pool in range(pools)
        for host in range(hosts)
    ]


def _load(chosen: dict[Identity, tuple[str, ...]]) -> Counter[str]:
    return Counter(node for holders in chosen.values() for node in holders)


shapes = st.tuples(st.integers(2, 6), st.integers(1, 12), st.integers(1, 3))
few_copies = st.integers(1, 2)


@given(shapes, few_copies)
def test_with_a_volume_on_each_node_none_holds_more_than_its_share_and_a_half(
    shape: tuple[int, int, int], copies: int
) -> None:
    nodes = cluster(*shape)
    chosen = choose_all(volumes_of(nodes), nodes, copies)
    possible = min(copies, len(nodes) - 1)
    assert all(len(set(holders)) == possible for holders in chosen.values())
    assert max(_load(chosen).values(), default=0) <= 1.5 * copies + 1


@given(shapes, few_copies)
def test_however_full_nodes_are_no_copy_shares_a_pool_with_its_volume_while_there_is_another(
    shape: tuple[int, int, int], copies: int
) -> None:
    nodes = cluster(*shape)
    domains = {node.node: node.domain for node in nodes}
    owners = volumes_of(nodes)
    for identity, holders in choose_all(owners, nodes, copies).items():
        for node in holders[: shape[0] - 1]:
            assert domains[node].pool != owners[identity].domain.pool


@given(shapes, few_copies, st.integers(0, 1000))
def test_what_a_lost_pool_held_moves_and_little_else(shape: tuple[int, int, int], copies: int, drawn: int) -> None:
    nodes = cluster(shape[0] + 2, shape[1], shape[2])
    before = choose_all(volumes_of(nodes), nodes, copies)
    lost = nodes[drawn % len(nodes)].domain.pool
    left = [replace(node, alive=node.domain.pool != lost) for node in nodes]
    gone = {node.node for node in left if not node.alive}
    after = choose_all(volumes_of(left), left, copies)
    assert not gone & _load(after).keys()
    had = sum(node in gone for holders in before.values() for node in holders)
    moved = sum(len({*holders} - {*after[identity]}) for identity, holders in before.items())
    assert moved - had <= max(4, 0.4 * copies * len(nodes))


@given(shapes, few_copies)
def test_the_order_in_which_nodes_and_volumes_are_known_makes_no_difference_to_all(
    shape: tuple[int, int, int], copies: int
) -> None:
    nodes = cluster(*shape)
    owners = volumes_of(nodes)
    backwards = dict(reversed(owners.items()))
    assert choose_all(owners, nodes, copies) == choose_all(backwards, [*reversed(nodes)], copies)


@given(volumes, owns, members)
def test_a_copy_that_comes_beside_others_is_kept_apart_from_them_too(
    identity: Identity, own: Member, others: list[Member]
) -> None:
    beside = [one for one in others if one.alive and one.node != own.node][:1]
    for node in choose_holders(identity, own, others, 2, beside=beside):
        assert node not in {own.node, *(one.node for one in beside)}


def test_a_volume_of_a_node_that_is_gone_keeps_its_place_unless_another_has_mounted_it() -> None:
    nodes = cluster(3, 2)
    (identity,) = nodes[0].mounted
    nodes[0] = replace(nodes[0], alive=False)
    assert volumes_of(nodes)[identity] is nodes[0]
    nodes[5] = replace(nodes[5], mounted=nodes[5].mounted | {identity})
    assert volumes_of(nodes)[identity] is nodes[5]
