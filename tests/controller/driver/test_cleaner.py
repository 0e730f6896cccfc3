"""The daemonset that leaves nothing on nodes: it goes where the driver was, and looks where that has put things."""

from __future__ import annotations

from typing import Any

from controller.driver import names
from controller.driver.cleaner import cleaner
from controller.driver.manifests import daemonset
from csi.cleaning.cli import cleaner as command
from tests.controller.configurations import IMAGES, SETTINGS, UID, configuration

MADE = cleaner(configuration(), IMAGES, SETTINGS)
POD: dict[str, Any] = MADE["spec"]["template"]["spec"]
DRIVER: dict[str, Any] = daemonset(configuration(), IMAGES, SETTINGS)


def test_it_comes_to_the_nodes_of_the_driver_and_is_none_of_its_pods() -> None:
    pod = DRIVER["spec"]["template"]["spec"]
    for what in ("nodeSelector", "tolerations", "priorityClassName", "serviceAccountName", "hostPID"):
        assert POD[what] == pod[what]
    labels = MADE["spec"]["template"]["metadata"]["labels"]
    assert labels[names.CLEANS_LABEL] == UID
    assert not DRIVER["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert names.APP.items() <= MADE["metadata"]["labels"].items(), "the controller follows it"
    assert names.UID_LABEL not in MADE["metadata"]["labels"]


def test_it_keeps_away_from_nodes_that_are_shared() -> None:
    assert "affinity" not in POD
    found = cleaner(configuration(), IMAGES, SETTINGS, {"b", "a"})["spec"]["template"]["spec"]["affinity"]
    (term,) = found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [one["values"] for one in term["matchFields"]] == [["a"], ["b"]], "the API takes one name for each"


def test_the_program_takes_its_arguments_which_are_the_drivers_places_on_the_host() -> None:
    (container,) = POD["containers"]
    found = command.make_context("fuse-tier-clean", list(container["args"])).params
    paths = {one["name"]: one["hostPath"]["path"] for one in POD["volumes"] if "hostPath" in one}
    for mount in container["volumeMounts"]:
        if mount["name"] in paths:
            assert mount["mountPath"] == f"/host{paths[mount['name']]}"
    driver = {one["hostPath"]["path"] for one in DRIVER["spec"]["template"]["spec"]["volumes"] if "hostPath" in one}
    for directory in (found["socket"].rpartition("/")[0], found["ram"].rpartition("/")[0]):
        assert directory.removeprefix("/host") in driver
    assert f"{found['kubelet']}/plugins/{found['driver_name']}".removeprefix("/host") in driver
    assert container["readinessProbe"]["exec"]["command"] == ["cat", found["told"]]
