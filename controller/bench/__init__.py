"""Rows of ``fuse-tier bench``: what the controller and the ranks server take and cost."""

from __future__ import annotations

from typing import Final

from controller.bench import kube, ranks

ROWS: Final = (*ranks.ROWS, *kube.ROWS)
