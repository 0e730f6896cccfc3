"""What the doctor found, and what prune gave up, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from fuse_tier.cli.rendering import age, table
from fuse_tier.quantities import format_size

_NAMED_AT_MOST = 6


def findings_view(findings: Iterable[dict[str, Any]]) -> Table:
    """The table of ``doctor``."""
    marks = {"ok": "ok", "warning": "WARNING", "failed": "FAILED", "skipped": "-"}
    rows = [(one["check"], marks[one["state"]], one["detail"], one["remedy"]) for one in findings]
    return table(("CHECK", "STATE", "FOUND", "TO DO"), rows)


def checkpoints_view(checkpoints: Iterable[dict[str, Any]]) -> Table:
    """The table of ``ls --bucket``."""
    rows = [
        (
            one["checkpoint"],
            one["job"],
            one["run"],
            "-" if one["step"] is None else str(one["step"]),
            age(one["created_ns"]),
            _several([f"{replica}@{number}" for replica, number in sorted(one["snapshots"].items())]),
        )
        for one in checkpoints
    ]
    return table(("CHECKPOINT", "JOB", "RUN", "STEP>", "AGE>", "SNAPSHOTS"), rows)


def standings_view(standings: Iterable[dict[str, Any]]) -> Table:
    """The table of ``status --job``."""
    rows = [
        (
            "-" if one["step"] is None else str(one["step"]),
            one["run"],
            str(one["ranks"]),
            ", ".join(one["tiers"]) or "-",
            format_size(one["size"]),
            age(one["created_ns"]),
            "yes" if one["restorable"] else "marked bad" if one["is_bad"] else "no: parts are on nodes that are away",
        )
        for one in standings
    ]
    return table(("STEP>", "RUN", "RANKS>", "COMPLETE ON", "SIZE>", "AGE>", "RESTORABLE"), rows)


def plan_view(facts: dict[str, Any]) -> Table:
    """The table of ``plan``."""
    rows = [
        (
            leg["snapshot"] + ("" if leg["snapshot"].startswith(f"{leg['for']}@") else f", for {leg['for']}"),
            leg["at"],
            ", ".join(map(_source, leg["sources"])) or "NOBODY HAS IT",
            format_size(sum(one["bytes"] for one in leg["sources"] if one["tier"] != "ram")),
        )
        for leg in facts["legs"]
    ]
    return table(("SNAPSHOT", "COMES TO", "FROM", "OVER THE NETWORK>"), rows)


def _source(one: dict[str, Any]) -> str:
    if one["tier"] == "ram":
        return "its own RAM"
    place = f"peer {one['node']}" if one["tier"] == "peer" else "the bucket"
    return f"{place} ({format_size(one['bytes'])})"


def prune_view(facts: dict[str, Any]) -> Table:
    """The table of ``prune``."""
    rows = [
        (
            job["job"],
            str(job["checkpoints"]),
            str(job["snapshots"]),
            _several(job["drop_checkpoints"]),
            _several([name.rpartition("/")[2] for name in job["drop_snapshots"]]),
            format_size(job["bytes"]),
        )
        for job in facts["jobs"]
    ]
    return table(("JOB", "CHECKPOINTS>", "SNAPSHOTS>", "CHECKPOINTS THAT GO", "SNAPSHOTS THAT GO", "SIZE>"), rows)


def _several(names: Sequence[str]) -> str:
    if not names:
        return "-"
    rest = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")
