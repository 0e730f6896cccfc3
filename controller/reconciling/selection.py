"""Which nodes a configuration means, and who of several that mean the same node has it.

Of two, the one that has a daemonset already goes first, then the older one: a configuration that comes later takes
nothing away from anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.driver.configuration import Configuration

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """What decides whether pods come to it."""

    name: str
    labels: tuple[tuple[str, str], ...]
    taints: tuple[tuple[str, str, str], ...]  # key, value, effect


def read_node(found: Object) -> Node:
    """From the object."""
    taints = (found.get("spec") or {}).get("taints") or ()
    return Node(
        found["metadata"]["name"],
        tuple(sorted((found["metadata"].get("labels") or {}).items())),
        tuple((one["key"], one.get("value") or "", one["effect"]) for one in taints),
    )


def runs_on(configuration: Configuration, node: Node) -> bool:
    """Whether its daemonset puts a pod there."""
    if not configuration.node_selector.items() <= dict(node.labels).items():
        return False
    # Every daemonset's pods tolerate what Kubernetes itself finds wrong with a node.
    taints = [
        one for one in node.taints if one[2] != "PreferNoSchedule" and not one[0].startswith("node.kubernetes.io/")
    ]
    return all(any(_tolerates(one, taint) for one in configuration.tolerations) for taint in taints)


def conflict_of(
    configuration: Configuration,
    others: Iterable[Configuration],
    running: Collection[str],
    nodes: Iterable[Node],
) -> str:
    """Who has a node that this configuration means, in words; empty when nobody has.

    ``running`` are the uids of configurations that have something on nodes.
    """

    def place(one: Configuration) -> tuple[bool, str, str]:
        return (one.uid not in running, one.created, one.uid)

    first = sorted(
        (one for one in others if one.uid != configuration.uid and place(one) < place(configuration)
         and (one.uid in running or not one.is_deleted)),
        key=place,
    )  # fmt: skip
    for node in sorted(nodes, key=lambda one: one.name):
        if runs_on(configuration, node):
            for other in first:
                if runs_on(other, node):
                    return (
                        f"node {node.name} is a node of the configuration {other.name} already: "
                        "give the two selectors that no node matches both of"
                    )
    return ""


def _tolerates(toleration: Object, taint: tuple[str, str, str]) -> bool:
    key, value, effect = taint
    if toleration.get("effect") not in (None, "", effect):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", key)
    return toleration.get("key") == key and (toleration.get("value") or "") == value
