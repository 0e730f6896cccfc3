"""An API server for each test that asks for one: it takes seconds to start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.local.kube import ApiServer, running_api_server


@pytest.fixture
async def api_server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    """A real one, empty."""
    async with running_api_server(tmp_path / "kube") as server:
        yield server
