"""The table of waits keeps its own rule."""

from __future__ import annotations

import re
from pathlib import Path

import fuse_tier
from fuse_tier.deadlines import Deadline, Wait, check_order, table, violations


def test_what_waits_on_another_waits_longer() -> None:
    check_order()


def test_a_wait_that_is_shorter_than_what_it_waits_on_is_named() -> None:
    rows = (Wait("INNER", 5.0), Wait("OTHER", 2.0), Wait("OUTER", 7.0, covers=("INNER", "OTHER")), Wait("NONE", 0.0))
    assert list(violations(rows)) == [
        "OUTER is 7 s, but waits on INNER and OTHER, 7 s",
        "NONE is 0 s: a wait must be longer than nothing",
    ]


def test_every_deadline_has_its_row() -> None:
    assert {row.name for row in table()} == {name for name in vars(Deadline) if name.isupper()}


def test_every_deadline_that_the_code_names_is_in_the_table() -> None:
    known = {row.name for row in table()}
    for module in Path(fuse_tier.__file__).parent.rglob("*.py"):
        named = set(re.findall(r"\bDeadline\.([A-Z_]+)\b", module.read_text()))
        assert named <= known, f"{module}: {named - known}"
