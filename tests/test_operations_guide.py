"""docs/operations.md knows every line that may worry an operator."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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
    section = (ROOT / "docs/operations.md").read_text().partition("### What to do")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    known = {name for cell in cells for name in re.findall(r"`([a-z_.]+)`", cell)}
    logged = {
        event
        for place in ("fuse_tier", "csi", "controller")
        for module in (ROOT / place).rglob("*.py")
        for event in loud_events(module)
    }
    assert logged - known == set(), "add a row to docs/operations.md, 'What to do'"
