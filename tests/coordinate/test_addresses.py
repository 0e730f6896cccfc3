"""Where training jobs have their coordinators, as nodes tell of it."""

from __future__ import annotations

import itertools

import pytest

from fuse_tier.coordinate.addresses import JobAddresses
from fuse_tier.members import JobAddress


def found(addresses: JobAddresses, job: str) -> str:
    one = addresses.of(job)
    return one.address if one is not None else ""


def test_an_address_goes_with_the_node_that_has_it_registered_and_the_latest_counts() -> None:
    addresses = JobAddresses()
    addresses.hear("a", {"llama": JobAddress("10.0.0.1", 1)})
    addresses.hear("b", {"llama": JobAddress("10.0.0.2", 2), "bert": JobAddress("10.0.0.3", 3)})
    addresses.hear("a", {"llama": JobAddress("10.0.0.1", 1)})
    assert [found(addresses, job) for job in ("llama", "bert", "t5")] == ["10.0.0.2", "10.0.0.3", ""]
    addresses.forget(["a"])
    assert addresses.all() == {"llama": "10.0.0.1"}
    addresses.hear("a", {})
    assert addresses.all() == {}


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_the_last_that_was_registered_counts_whoever_is_heard_last(order: tuple[str, ...]) -> None:
    addresses = JobAddresses()
    for node in order:
        addresses.hear(node, {"llama": JobAddress(f"10.0.0.{node}", ord(node))})
    assert found(addresses, "llama") == "10.0.0.c"


def test_of_nodes_that_do_not_say_when_the_last_that_was_heard_counts() -> None:
    addresses = JobAddresses()
    addresses.hear("a", {"llama": JobAddress("10.0.0.1")})
    addresses.hear("b", {"llama": JobAddress("10.0.0.2")})
    addresses.hear("a", {"llama": JobAddress("10.0.0.1"), "bert": JobAddress("10.0.0.3")})
    assert addresses.all() == {"llama": "10.0.0.2", "bert": "10.0.0.3"}
    addresses.hear("a", {"llama": JobAddress("10.0.0.4")})
    assert addresses.all() == {"llama": "10.0.0.4"}
