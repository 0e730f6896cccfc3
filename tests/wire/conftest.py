"""The bulk server's fixtures, and a peer, for all modules that need one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.wire.bulk import certificates as certificates
from tests.wire.bulk import secure as secure
from tests.wire.bulk import server as server
from tests.wire.bulk import threads as threads
from tests.wire.certificates import Certificates
from tests.wire.peers import Peer, running_peer


@pytest.fixture
async def peer(memory_path: Path, certificates: Certificates) -> AsyncIterator[Peer]:
    async with running_peer(memory_path, certificates.b) as peer:
        yield peer
