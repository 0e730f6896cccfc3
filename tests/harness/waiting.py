"""Waiting for a fact that nobody announces."""

from __future__ import annotations

from fuse_tier.localcluster.waiting import until

__all__ = ["until"]
