from __future__ import annotations

import pytest

from controller.ranks.objects import (
    BACKUP_ANNOTATION,
    STEP_ANNOTATION,
    Name,
    Node,
    Owner,
    Place,
    Reference,
    read_node,
    read_pod,
    read_wish,
    read_workers,
)
from csi.services import DRIVER_NAME
from fuse_tier.restarts import Wish
from tests.controller.ranks.objects import jobset_pod, node, pod


def place_of(found: dict[str, object]) -> Place | None:
    read = read_pod(found, DRIVER_NAME)
    assert read is not None
    return read.place


def test_a_pod_without_a_volume_of_ours_is_passed_over() -> None:
    assert read_pod(pod("a", driver="other"), DRIVER_NAME) is None
    assert read_pod({"metadata": {"name": "a", "namespace": "b", "uid": "c"}, "spec": {}}, DRIVER_NAME) is None


def test_a_jobset_says_slice_worker_and_attempt() -> None:
    found = place_of(jobset_pod("llama", 3, 2, 1, attempt=4))
    owner = Owner("Job", Name("ml", "llama-workers-2"))
    assert found == Place(Name("ml", "llama"), owner, 3, 2, 1, 4, "", is_of_jobset=True)
    assert found.made_by == Reference("jobset.x-k8s.io/v1alpha2", "JobSet", Name("ml", "llama"), "")


def test_an_indexed_job_is_one_slice() -> None:
    found = pod("a-3-x", owner=("Job", "a"), labels={"batch.kubernetes.io/job-completion-index": "3"})
    place = place_of(found)
    assert place == Place(Name("ml", "a"), Owner("Job", Name("ml", "a")), 1, 0, 3, 0, "uid-of-a")
    assert place.made_by == Reference("batch/v1", "Job", Name("ml", "a"), "uid-of-a")


@pytest.mark.parametrize("labels", [{}, {"apps.kubernetes.io/pod-index": "7"}])
def test_a_stateful_set_has_ordinals(labels: dict[str, str]) -> None:
    found = pod("train-7", owner=("StatefulSet", "train"), labels=labels)
    assert place_of(found) == Place(
        Name("ml", "train"), Owner("StatefulSet", Name("ml", "train")), 1, 0, 7, 0, "uid-of-train"
    )


@pytest.mark.parametrize(
    "found",
    [
        pod("alone"),
        pod("a-x", owner=("Job", "a")),
        pod("a-x", owner=("ReplicaSet", "a")),
        pod("a", owner=("StatefulSet", "a")),
        pod("a-x", owner=("Job", "a"), labels={"batch.kubernetes.io/job-completion-index": "-1"}),
        pod("a-x", owner=("Job", "a"), labels={"batch.kubernetes.io/job-completion-index": "1e3"}),
        jobset_pod("a", 0, 0, 0) | {"metadata": {"namespace": "ml", "name": "a", "uid": "a", "labels": None}},
    ],
)
def test_other_pods_are_of_no_job(found: dict[str, object]) -> None:
    assert place_of(found) is None


@pytest.mark.parametrize(
    ("found", "is_over"),
    [
        (pod("a", phase="Running"), False),
        (pod("a", phase="Succeeded"), True),
        (pod("a", phase="Failed"), True),
        (pod("a", phase="Running", deleted=True), True),
    ],
)
def test_a_pod_is_over_when_it_ended_or_is_being_deleted(found: dict[str, object], is_over: bool) -> None:
    read = read_pod(found, DRIVER_NAME)
    assert read is not None
    assert read.is_over is is_over


@pytest.mark.parametrize(
    ("spec", "workers"),
    [
        ({"completionMode": "Indexed", "completions": 512, "parallelism": 512}, 512),
        ({"completions": 3}, None),
        ({"completionMode": "Indexed"}, None),
        ({"replicas": 4, "serviceName": "train"}, 4),
        ({"serviceName": "train"}, 1),
        ({"replicas": 0}, 0),
    ],
)
def test_workers_are_counted_by_who_makes_them(spec: dict[str, object], workers: int | None) -> None:
    assert read_workers({"spec": spec}) == workers


def test_a_node_is_reached_inside_the_cluster_and_its_labels_say_what_it_fails_together_with() -> None:
    assert read_node(node("10.0.0.7", "pool-a")) == Node("pool-a", "10.0.0.7", "zone-of-pool-a", "host-of-pool-a")
    assert read_node({"metadata": {}}) == Node("", "")


@pytest.mark.parametrize(
    ("annotations", "wish"),
    [
        (None, None),
        ({}, None),
        ({STEP_ANNOTATION: "100"}, Wish("step 100", 100)),
        ({STEP_ANNOTATION: "0"}, Wish("step 0", 0)),
        ({BACKUP_ANNOTATION: "2026-01-31_08-30"}, Wish("backup 2026-01-31_08-30", backup="2026-01-31_08-30")),
    ],
)
def test_what_a_person_wishes_stands_in_an_annotation(annotations: dict[str, str] | None, wish: Wish | None) -> None:
    assert read_wish({"metadata": {"annotations": annotations}}) == wish


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({STEP_ANNOTATION: "the last"}, "'the last' is no step"),
        ({STEP_ANNOTATION: "-1"}, "'-1' is no step"),
        ({STEP_ANNOTATION: "9" * 30}, "is no step"),
        ({BACKUP_ANNOTATION: "yesterday"}, "'yesterday' is no date of a backup"),
        ({STEP_ANNOTATION: "1", BACKUP_ANNOTATION: "2026-01-31_08-30"}, "leave one"),
    ],
)
def test_a_wish_that_cannot_be_followed_is_told_in_a_sentence(annotations: dict[str, str], said: str) -> None:
    found = read_wish({"metadata": {"annotations": annotations}})
    assert isinstance(found, str)
    assert said in found
