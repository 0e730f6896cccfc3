"""What we know is written down also when the tier is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_tier.identity import Identity
from fuse_tier.manifest import Lineage
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.notes import replace
from fuse_tier.ram.room import Reserve, room_of
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.record import TreeRecord, read_record, write_record
from tests.fs.filling import Fillable, small_tmpfs

pytestmark = pytest.mark.root

SIZE = 8 << 20


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Path]:
    """A small tmpfs."""
    with small_tmpfs(tmp_path, SIZE) as path:
        yield path


def test_a_record_of_a_volume_is_replaced_in_a_tier_that_is_full(tier: Path) -> None:
    layout = Layout(str(tier))
    create_directories(layout)
    volume = layout.volume(Identity("default", "job", "0"))
    os.makedirs(volume.root)
    assert volume.tier == layout
    reserve = Reserve(layout)
    reserve.refill()
    while reserve.spend(1, for_job=True):  # jobs have had what they get
        continue
    with Fillable(tier, SIZE).filled_up(0):
        assert room_of(layout.root).free == 0
        for number in range(1, 20):
            write_record(volume, TreeRecord(Lineage("run"), number))
        assert read_record(volume) == TreeRecord(Lineage("run"), 19)
        assert os.listdir(volume.root) == ["volume.json"]


def test_without_any_room_it_fails_and_leaves_what_stood_there_and_nothing_else(tier: Path) -> None:
    layout, note = Layout(str(tier)), tier / "note"
    replace(layout, str(note), "first")
    with Fillable(tier, SIZE).filled_up(0), pytest.raises(OSError, match=os.strerror(28)):
        replace(layout, str(note), "second")
    assert note.read_text() == "first"
    assert sorted(os.listdir(tier)) == ["note", "reserve"]
