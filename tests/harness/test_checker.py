from __future__ import annotations

from pathlib import Path

import pytest

from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest, encode
from fuse_tier.ram.layout import Layout
from tests.harness.checker import broken_in_ram, listed

_CONTENT = b"weights"
_SNAPSHOT = SnapshotId.parse("default/job/0@3")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A RAM tier with one snapshot of one file."""
    layout = Layout(str(tmp_path))
    blob = hash_bytes(_CONTENT)
    entries = (Entry(b"", Kind.DIRECTORY, mode=0o755), Entry(b"file", Kind.FILE, mode=0o644, blob=blob))
    manifest = Manifest(_SNAPSHOT, Lineage("job"), "a", 1, entries)
    for path, content in ((layout.blob(blob), _CONTENT), (layout.manifest(_SNAPSHOT), encode(manifest))):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_bytes(content)
    return layout


def test_a_whole_snapshot_passes(layout: Layout) -> None:
    assert listed(layout) == [_SNAPSHOT]
    assert broken_in_ram(layout, "a") == []


def test_a_missing_blob_is_reported(layout: Layout) -> None:
    Path(layout.blob(hash_bytes(_CONTENT))).unlink()
    assert broken_in_ram(layout, "a") == [f"a: {_SNAPSHOT} lacks {hash_bytes(_CONTENT)}"]


def test_a_wrong_byte_is_reported(layout: Layout) -> None:
    Path(layout.blob(hash_bytes(_CONTENT))).write_bytes(b"Weights")
    (line,) = broken_in_ram(layout, "a")
    assert "in place of" in line
