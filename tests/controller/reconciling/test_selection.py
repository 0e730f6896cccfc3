from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.reconciling.selection import Node, conflict_of, read_node, runs_on
from tests.controller.configurations import configuration

GPU = ("nvidia.com/gpu", "present", "NoSchedule")


def node(name: str = "n1", pool: str = "training", *taints: tuple[str, str, str]) -> Node:
    return Node(name, (("cloud.google.com/gke-nodepool", pool), ("zone", "a")), taints)


@pytest.mark.parametrize(
    ("tolerations", "taint", "runs"),
    [
        ([], GPU, False),
        ([{"operator": "Exists"}], GPU, True),
        ([{"key": "nvidia.com/gpu", "operator": "Exists"}], GPU, True),
        ([{"key": "nvidia.com/gpu", "value": "present"}], GPU, True),
        ([{"key": "nvidia.com/gpu", "value": "absent"}], GPU, False),
        ([{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}], GPU, False),
        ([], ("nvidia.com/gpu", "present", "PreferNoSchedule"), True),
        ([], ("node.kubernetes.io/not-ready", "", "NoExecute"), True),
    ],
)
def test_pods_come_to_nodes_whose_taints_they_tolerate(tolerations: Any, taint: Any, runs: bool) -> None:
    assert runs_on(configuration(tolerations=tolerations), node("n1", "training", taint)) == runs


def test_pods_come_to_nodes_with_all_labels_that_are_selected() -> None:
    assert runs_on(configuration(), node())
    assert not runs_on(configuration(), node(pool="other"))
    assert runs_on(configuration(nodeSelector=None), node(pool="other"))


def test_a_node_of_another_configuration_is_named_and_who_has_a_daemonset_or_is_older_goes_first() -> None:
    ours, other = configuration("ours", "1"), configuration("other", "2")
    both = [ours, other]
    assert conflict_of(ours, both, [], [node()]) == "", "of the same age the uid decides"
    assert conflict_of(other, both, [], [node()]).startswith("node n1 is a node of the configuration ours already")
    assert conflict_of(ours, both, ["2"], [node()]).startswith("node n1 is a node of the configuration other already")
    assert conflict_of(ours, both, ["2"], [node(pool="elsewhere")]) == ""


names = st.sampled_from(["a", "b", "c"])


@given(
    selectors=st.lists(st.dictionaries(st.sampled_from(["x", "y"]), names, max_size=2), min_size=1, max_size=4),
    labels=st.lists(st.dictionaries(st.sampled_from(["x", "y"]), names, max_size=2), max_size=4),
    running=st.sets(st.integers(0, 3)),
)
def test_of_all_that_mean_one_node_exactly_one_is_in_no_conflict_over_it(
    selectors: list[dict[str, str]], labels: list[dict[str, str]], running: set[int]
) -> None:
    everyone = [configuration(f"c{n}", str(n), nodeSelector=one) for n, one in enumerate(selectors)]
    for number, one in enumerate(labels):
        there = Node(f"n{number}", tuple(sorted(one.items())), ())
        meant_by = [some for some in everyone if runs_on(some, there)]
        uids = [str(n) for n in running]
        free = [some for some in meant_by if not conflict_of(some, everyone, uids, [there])]
        assert len(free) == min(1, len(meant_by))


def test_a_node_is_read_with_what_decides_and_nothing_else() -> None:
    found = {
        "metadata": {"name": "n", "labels": {"b": "1", "a": "2"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"lastHeartbeatTime": "now"}]},
    }
    assert read_node(found) == Node("n", (("a", "2"), ("b", "1")), (("k", "", "NoSchedule"),))
