"""The alerts and the dashboard of ``deploy/monitoring``: they say what they should, of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.driver import names
from controller.driver.manifests import daemonset
from controller.reconciling.conditions import Findings, conclude
from fuse_tier.tiers.base import TierName
from tests.controller.configurations import IMAGES, SETTINGS, configuration
from tests.harness.metrics import ROOT, declared, operators_rows
from tests.harness.needs import PROMTOOL

MONITORING = ROOT / "deploy/monitoring"
PLAYED = ROOT / "tests/deploy/alerts_test.yaml"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
GIVEN = {"node", "pod", "container"}  # by prometheus.yaml, to whatever is scraped
PROMETHEUS_OWN = {"up": {"job"} | GIVEN}
_USED = re.compile(r"\b(up|(?:fuse_tier|node_operations)_\w+)(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")


def expressions() -> Iterator[tuple[str, str]]:
    """Each with who says it."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def promtool(*arguments: str) -> None:
    found = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_metric_that_is_shown_or_watched_is_there_with_these_labels() -> None:
    known = {name: labels | GIVEN for name, labels in declared().items()} | PROMETHEUS_OWN
    for who, expression in expressions():
        used = _USED.findall(expression)
        assert used, who
        for name, matchers in used:
            assert name in known, f"{who}: {name}"
            assert set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) <= known[name], f"{who}: {name}{{{matchers}}}"
        labels = {label.strip() for group in _GROUPED.findall(expression) for label in group.split(",")}
        assert labels <= set().union(*(known[name] for name, _ in used)), who


def test_what_a_label_is_asked_for_is_something_that_it_may_be() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "fuse_tier").rglob("*.py"))
    values = {
        "tier": {tier.value for tier in TierName},
        "kind": set(re.findall(r'metrics\.error\("([\w-]+)"\)', sources)),
        "outcome": set(re.findall(r"`(\w+)`", operators_rows()["fuse_tier_backups_total"])),
        "condition": {one.type for one in conclude(Findings("default", 1, None))},
    }
    for who, expression in expressions():
        for label, words in re.findall(rf'\b({"|".join(values)})=~?"([^"]*)"', expression):
            assert set(words.split("|")) <= values[label], who


@pytest.mark.promtool
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("check", "config", str(MONITORING / "prometheus.yaml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(MONITORING / "alerts.yaml"))
    promtool("test", "rules", str(PLAYED))
    cases = [case for scene in yaml.safe_load(PLAYED.read_text())["tests"] for case in scene["alert_rule_test"]]
    for fires in (True, False):
        played = {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires}
        assert played == {rule["alert"] for rule in RULES}, fires


@pytest.mark.promtool
def test_the_expressions_of_the_dashboard_are_ones(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$node", ".*")}
        for number, (_, text) in enumerate(expressions())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", str(path))


def test_the_dashboard_is_in_order() -> None:
    """Nothing lies over anything else or leaves a hole, and each panel says what it shows, and in which unit."""
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
    assert len(cells) == 24 * (max(y for _, y in cells) + 1)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] == "state-timeline" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == "${datasource}", panel["title"]


def test_what_is_scraped_is_where_the_programs_listen() -> None:
    driver, control = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    pod = daemonset(configuration(), IMAGES, SETTINGS)["spec"]["template"]
    kept = kept_by(driver)
    assert kept["pod_label_app_kubernetes_io_component"] == pod["metadata"]["labels"]["app.kubernetes.io/component"]
    ports = {
        one["regex"].split(";")[0]: int(one["replacement"].split(":")[1])
        for one in driver["relabel_configs"]
        if one.get("target_label") == "__address__"
    }
    assert ports == {"replication-worker": names.WORKER_METRICS_PORT, "csi": names.CSI_METRICS_PORT}
    assert set(kept["pod_container_name"].split("|")) == ports.keys()
    assert ports.keys() < {container["name"] for container in pod["spec"]["containers"]}
    for one in yaml.safe_load_all((ROOT / "deploy/multitier/controller/controller.yaml").read_text()):
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]
            assert re.fullmatch(kept_by(control)["pod_label_app"], pod["metadata"]["labels"]["app"])
            named = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
            assert kept_by(control)["pod_container_port_name"] in named


def kept_by(scraping: dict[str, Any]) -> dict[str, str]:
    """What Kubernetes must say of a pod, by the end of the label's name."""
    return {
        one["source_labels"][0].removeprefix("__meta_kubernetes_"): one["regex"]
        for one in scraping["relabel_configs"]
        if one.get("action") == "keep"
    }


def test_kustomize_puts_all_files_into_config_maps_where_grafana_looks_for_its_own() -> None:
    command = [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(MONITORING)]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    maps = {one["metadata"]["name"]: one for one in yaml.safe_load_all(made)}
    files = {name: text for one in maps.values() for name, text in one["data"].items()}
    assert files == {
        path.name: path.read_text() for path in MONITORING.iterdir() if path.name != "kustomization.yaml"
    }
    assert maps["fuse-tier-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_every_alert_is_in_the_operators_guide() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert sorted(told) == sorted(rule["alert"] for rule in RULES)
