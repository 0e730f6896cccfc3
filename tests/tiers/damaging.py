"""How tests damage what a tier keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.identity import SnapshotId
from fuse_tier.tiers.base import Tier
from tests.harness.logs import ExpectedLogs


class Damaging(ABC):
    """A tier that tests can damage."""

    announced: ClassVar[tuple[str, ...]] = ()
    """Events that the tier logs as a warning or error when it meets damage."""

    @abstractmethod
    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        """Puts other bytes where the tier keeps a blob."""

    @abstractmethod
    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        """Puts another text where the tier keeps a manifest."""

    @pytest.fixture
    def damage(self, expected_logs: ExpectedLogs) -> None:
        """For tests that damage the tier: announces what it may log about it."""
        for event in self.announced:
            expected_logs.allow(event)
