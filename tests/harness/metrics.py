"""All metrics that any of our processes has, whichever modules were imported before."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from fuse_tier.metrics import REGISTRY

ROOT = Path(__file__).parents[2]
PACKAGES = ("fuse_tier", "csi", "controller")


def declared() -> Mapping[str, frozenset[str]]:
    """The names under which Prometheus has their samples, each with its labels."""
    for package in PACKAGES:
        for module in sorted((ROOT / package).rglob("*.py")):
            if "REGISTRY" in module.read_text():
                importlib.import_module(".".join(module.relative_to(ROOT).with_suffix("").parts))
    return {
        name: labels | ({"le"} if name.endswith("_bucket") else set())
        for collector in REGISTRY._collector_to_names  # nothing public tells of metrics that have no samples yet
        for name, labels in _series(collector)
    }


def operators_rows() -> Mapping[str, str]:
    """Metrics as the operators' guide has them: what its tables say of labels, with the values that these have."""
    found: dict[str, str] = {}
    for row in (ROOT / "docs/operations.md").read_text().splitlines():
        if row.startswith("| `"):
            named, labels = row.strip("| ").split(" | ")[:2]
            found |= dict.fromkeys(re.findall(r"`((?:fuse_tier|node_operations)_[a-z_]+)`", named), labels)
    return found


def _series(collector: Collector) -> Iterator[tuple[str, frozenset[str]]]:
    labels: Sequence[str] = getattr(collector, "_labelnames", ()) or getattr(collector, "_labels", ())
    suffixes: Sequence[str] = [""]
    if isinstance(collector, Counter):
        suffixes = ["_total"]
    elif isinstance(collector, Histogram):
        suffixes = ["_bucket", "_count", "_sum"]
    for family in collector.describe() if isinstance(collector, MetricWrapperBase) else collector.collect():
        for suffix in suffixes:
            yield f"{family.name}{suffix}", frozenset(labels)
