"""A RAM layout on a real tmpfs, as any user can have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from tests.ram.pinned import Volume


@pytest.fixture
def layout(memory_path: Path) -> Layout:
    layout = Layout(str(memory_path))
    create_directories(layout)
    return layout


@pytest.fixture
def volume(layout: Layout) -> Volume:
    return Volume(layout)
