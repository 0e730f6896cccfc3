from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.driver.sameness import differences
from controller.reconciling.conditions import Findings, Rollout, conclude, events_between, read_rollout, status_of
from controller.reconciling.usage import Usage

WELL = Findings("default", 3, Rollout(desired=3, ready=3, updated=3, is_seen=True))
NOTHING = Findings("default", 3, None)


def said(found: Findings) -> dict[str, tuple[bool, str]]:
    return {one.type: (one.is_so, one.reason) for one in conclude(found)}


def test_all_is_well_when_every_node_has_the_newest_pod_and_it_is_ready() -> None:
    assert said(WELL) == {
        "Ready": (True, "AllNodesReady"),
        "Progressing": (False, "RolledOut"),
        "Degraded": (False, "AsWanted"),
        "Conflict": (False, "NoConflict"),
    }


def test_a_rollout_is_under_way_until_every_node_has_the_newest_pod() -> None:
    found = said(replace(WELL, rollout=Rollout(3, 3, 1, is_seen=True)))
    assert (found["Ready"], found["Progressing"]) == ((True, "AllNodesReady"), (True, "RollingOut"))
    found = said(replace(WELL, rollout=Rollout(3, 2, 3, is_seen=True)))
    assert (found["Ready"], found["Progressing"]) == ((False, "NodesNotReady"), (False, "RolledOut"))
    assert said(replace(WELL, rollout=Rollout(3, 3, 3, is_seen=False)))["Progressing"] == (True, "RollingOut")
    assert said(replace(WELL, rollout=Rollout(0, 0, 0, is_seen=True)))["Ready"] == (False, "NoNodes")
    assert said(NOTHING)["Ready"] == (False, "NotMade")


def test_a_change_that_is_held_says_what_it_would_lose_and_the_command_that_lets_it_through() -> None:
    status = status_of(replace(WELL, held=("inMemoryVolumeSize would shrink",)), {}, "driver", "now")
    (message,) = [one["message"] for one in status["conditions"] if one["reason"] == "ChangeHeld"]
    assert message == (
        "inMemoryVolumeSize would shrink. To have it so all the same: "
        "kubectl annotate --overwrite cpc default checkpointing.gke.io/allow-data-loss=3"
    )
    assert status["error"] == "inMemoryVolumeSize would shrink"


def test_a_status_that_says_the_same_is_the_same_and_a_time_changes_with_its_status_alone() -> None:
    first = status_of(WELL, {}, "driver", "10:00")
    assert status_of(WELL, first, "driver", "11:00") == first
    assert not differences(first, {**first, "volumes": 4}), "others may have fields of it"
    later = status_of(replace(WELL, rollout=Rollout(3, 2, 3, is_seen=True)), first, "driver", "11:00")
    times = {one["type"]: one["lastTransitionTime"] for one in later["conditions"]}
    assert times == {"Ready": "11:00", "Progressing": "10:00", "Degraded": "10:00", "Conflict": "10:00"}
    assert (later["nodesReady"], later["nodesDesired"], later["instanceHandle"]) == (2, 3, "driver")


def test_what_is_known_not_to_be_so_any_more_is_taken_away_once_and_what_is_not_known_stays() -> None:
    first = status_of(replace(WELL, usage=Usage(2, 100, "9:00")), {}, "driver", "now")
    assert (first["volumes"], first["lastCompleteStep"], first["lastBackupTime"]) == (2, 100, "9:00")
    later = status_of(replace(WELL, usage=Usage(0)), first, "driver", "now")
    assert (later["volumes"], later["lastCompleteStep"], later["lastBackupTime"]) == (0, None, None)
    written = {key: value for key, value in later.items() if value is not None}  # by a merge
    assert not differences(status_of(replace(WELL, usage=Usage(0)), written, "driver", "now"), written)
    assert "lastCompleteStep" not in status_of(WELL, first, "driver", "now")


def events(*findings: Findings) -> list[tuple[bool, str]]:
    status: dict[str, Any] = {}
    found = []
    for one in findings:
        after = status_of(one, status, "driver", "now")
        found += [(event.is_warning, event.reason) for event in events_between(status, after)]
        status = after
    return found


def test_events_tell_what_begins_or_is_over_and_nothing_twice() -> None:
    conflict = replace(NOTHING, conflict="node a is b's")
    assert events(conflict, conflict, replace(conflict, conflict="node c is d's"), NOTHING, WELL, WELL) == [
        (True, "Conflict"),
        (False, "ConflictOver"),
        (False, "Ready"),
    ]
    held = replace(WELL, held=("data",))
    assert events(WELL, held, held, WELL) == [(False, "Ready"), (True, "ChangeHeld")]
    broken = replace(NOTHING, trouble=("ImagesMissing", "the config map is missing"))
    assert events(broken, broken) == [(True, "ImagesMissing")]
    assert events(replace(WELL, ignores_options=True)) == [(False, "Ready"), (False, "OptionsNotNeeded")]


def test_a_daemonset_of_an_older_generation_is_not_seen_yet() -> None:
    found = {"metadata": {"generation": 2}, "status": {"observedGeneration": 1, "numberReady": 5}}
    assert read_rollout(found) == Rollout(0, 5, 0, is_seen=False)
    assert read_rollout({"metadata": {"generation": 1}}) == Rollout(0, 0, 0, is_seen=False)


def test_the_operators_guide_has_a_row_for_each_reason() -> None:
    root = Path(__file__).parents[3]
    sources = [(root / f"controller/reconciling/{name}.py").read_text() for name in ("conditions", "reconciler")]
    reasons = set(re.findall(r'"([A-Z][a-z]+(?:[A-Z][a-z]+)+)"', "".join(sources))) - {"CheckpointConfiguration"}
    section = (root / "docs/operations.md").read_text().partition("## Kubernetes")[2].partition("\n## ")[0]
    assert len(reasons) > 10
    assert {one for one in reasons if not re.search(rf"\b{one}\b", section)} == set()
