from __future__ import annotations

from typing import Any

from controller.driver import names
from controller.reconciling.selection import Node
from controller.reconciling.world import World
from tests.controller.configurations import UID, configuration_object
from tests.harness.logs import ExpectedLogs


def versioned(version: str, **spec: Any) -> dict[str, Any]:
    found = configuration_object(**spec)
    found["metadata"]["resourceVersion"] = version
    return found


def daemonset(version: str, uid: str = "d") -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": version, "labels": {names.UID_LABEL: UID}}}


def test_a_configuration_that_makes_no_sense_leaves_what_was_known_of_it_and_ends_nothing(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow("configuration.unreadable")
    world = World(lambda _: None)
    world.see_configuration(versioned("1"))
    world.see_configuration(versioned("2", inMemoryVolumeSize="9e99"))
    assert world.configurations[UID].storage.ram == 64 << 30
    world.see_configuration(versioned("3", inMemoryVolumeSize="1Gi"))
    assert world.configurations[UID].storage.ram == 1 << 30


def test_what_a_watch_tells_late_does_not_replace_what_a_write_has_shown() -> None:
    world = World(lambda _: None)
    world.see_daemonset(daemonset("10"))
    world.see_daemonset(daemonset("9"))
    assert world.daemonsets[UID]["metadata"]["resourceVersion"] == "10"
    world.lose_daemonset("an earlier one")
    assert UID in world.daemonsets
    world.lose_daemonset("d")
    assert world.daemonsets == {}


def test_a_node_whose_labels_and_taints_stay_wakes_nobody() -> None:
    woken: list[str | None] = []
    world = World(woken.append)
    world.see_node("n", Node("a", (("pool", "x"),), ()))
    world.see_node("n", Node("a", (("pool", "x"),), ()))
    assert woken == [None]
    world.see_node("n", None)
    world.see_node("n", None)
    assert woken == [None, None]
