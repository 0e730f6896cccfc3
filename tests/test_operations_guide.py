"""docs/operations.md knows every line that may worry an operator."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.harness.metrics import declared, operators_rows

ROOT = Path(__file__).parents[1]
LOUD = {"warning", "error", "exception", "critical"}


def loud_events(module: Path) -> Iterator[str]:
    """Names of events that a module logs as a warning or worse."""
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        logger, event = node.func.value, node.args[0]
        is_ours = isinstance(logger, ast.Name) and logger.id in ("log", "logger") and node.func.attr in LOUD
        if is_ours and isinstance(event, ast.Constant):
            yield str(event.value)


def test_every_event_that_is_a_warning_or_worse_has_its_row() -> None:
    section = section_of_guide("### What to do")
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    known = {name for cell in cells for name in re.findall(r"`([a-z_.]+)`", cell)}
    logged = {
        event
        for place in ("fuse_tier", "csi", "controller")
        for module in (ROOT / place).rglob("*.py")
        for event in loud_events(module)
    }
    assert logged - known == set(), "add a row to docs/operations.md, 'What to do'"


# Words of Kubernetes and of our own calls in the controller's code that are no reasons of conditions or events.
_NO_REASONS = {
    "Always", "Background", "CheckpointConfiguration", "Checkpoints", "Command", "Exists", "False", "Foreground",
    "Found", "Picture",
    "IfNotPresent", "Normal", "Opaque", "PreferNoSchedule", "Secret", "True", "Warning",
}  # fmt: skip


def test_every_condition_reason_and_event_of_a_configuration_is_explained() -> None:
    texts = {
        node.value
        for module in (ROOT / "controller/reconciling").glob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    said = {text for text in texts if re.fullmatch("([A-Z][a-z]+)+", text)}
    known = set(re.findall(r"\b[A-Z][A-Za-z]+", section_of_guide("## Kubernetes: what a configuration says")))
    assert {"Ready", "ImagesMissing", "DriverPodDeleted"} <= said
    assert said - _NO_REASONS - known == set(), "explain it in docs/operations.md, or it is no reason"


def test_every_code_that_the_plugin_refuses_with_is_explained() -> None:
    codes = re.findall(r"StatusCode\.([A-Z_]+)", (ROOT / "csi/refusals.py").read_text())
    section = section_of_guide("### Events of pods")
    for code in codes:
        assert f"`{code.title().replace('_', '')}`" in section, code


def test_every_metric_is_in_the_operators_guide_with_its_labels() -> None:
    documented = operators_rows()
    for name, required in declared().items():
        family = re.sub("_(bucket|count|sum)$", "", name)
        assert family in documented, name
        assert set(re.findall(r"`(\w+)`", documented[family])) >= required - {"le"}, name


def section_of_guide(heading: str) -> str:
    """Up to the next one of its level."""
    level = heading.partition(" ")[0]
    _, found, rest = (ROOT / "docs/operations.md").read_text().partition(f"{heading}\n")
    assert found, heading
    return re.split(rf"^#{{2,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
