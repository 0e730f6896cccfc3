"""Which nodes list a volume: the same as asking each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.coordinate.listings import Listings
from fuse_tier.identity import Identity
from fuse_tier.members import LocalFacts

VOLUMES = [Identity("default", "llama", str(rank)) for rank in range(3)]
held = st.dictionaries(st.sampled_from(VOLUMES), st.just((1,)))
told = st.tuples(st.sampled_from("abc"), st.builds(LocalFacts, st.just(1), st.just(1), holdings=held, bucket=held))


@given(st.lists(told | st.frozensets(st.sampled_from("abc")), max_size=12))
def test_who_lists_a_volume_is_known_however_reports_come_and_nodes_go(steps: list[object]) -> None:
    listings, known = Listings(), dict[str, LocalFacts]()
    for step in steps:
        match step:
            case (str(node), LocalFacts() as facts):
                known[node] = facts
                assert listings.hear(node, facts)
                assert not listings.hear(node, facts), "nothing is new of what is the very same"
            case frozenset():
                known = {node: facts for node, facts in known.items() if node in step}
                listings.forget_all_but(known)
    for one in VOLUMES:
        assert set(listings.nodes(one)) == {
            node for node, facts in known.items() if one in facts.holdings or one in facts.bucket
        }
    assert set(listings.identities()) == {one for one in VOLUMES if listings.nodes(one)}
