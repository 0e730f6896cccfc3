"""What every implementation of the tier interface does, whatever it is made of.

To put a tier to it, derive a class and give it the fixture ``tier`` (an empty one) and the two methods that
damage what the tier keeps::

    class TestMyTier(TierContract):
        @pytest.fixture
        async def tier(self, ...) -> AsyncIterator[Tier]: ...
        async def replace_content(self, tier, blob, content): ...
        async def replace_manifest(self, tier, snapshot, text): ...

Log lines that the damage provokes are named in ``announced``.
"""

from __future__ import annotations

from tests.tiers.content_contract import ContentContract
from tests.tiers.snapshot_contract import SnapshotContract


class TierContract(ContentContract, SnapshotContract):
    """The contract of ``fuse_tier/tiers/base.py``, line by line."""
