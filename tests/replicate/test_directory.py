"""A snapshot as a plain tree in a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_tier.errors import MountError
from fuse_tier.replicate.directory import into_directory
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.logs import ExpectedLogs
from tests.harness.unreadable import Unreadable
from tests.harness.unreadable import unreadable as unreadable
from tests.replicate.conftest import IDENTITY, Bench
from tests.replicate.test_restore import Node, save
from tests.replicate.test_restore import bucket as bucket
from tests.replicate.test_restore import node as node
from tests.replicate.test_tree import describe


async def test_a_plain_directory_is_restored_whole_or_not_at_all(
    bench: Bench, bucket: MemoryTier, node: Node, tmp_path: Path
) -> None:
    await save(bench, bucket, {"d/a": b"a" * 10_000, "d/b": b"a" * 10_000})
    chosen = await node.chooser.choose(IDENTITY, None)
    target = tmp_path / "out"
    restored = await into_directory(node.fetcher, IDENTITY, chosen, str(target))
    assert describe(target) == describe(bench.tree)
    assert not os.path.samefile(target / "d/a", target / "d/b")
    assert restored.files == 2
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(MountError, match="not empty"):
        await into_directory(node.fetcher, IDENTITY, chosen, str(target))


@pytest.mark.fuse
async def test_a_plain_directory_gets_from_elsewhere_what_the_own_ram_cannot_read(
    bench: Bench,
    bucket: MemoryTier,
    node: Node,
    tmp_path: Path,
    expected_logs: ExpectedLogs,
    unreadable: Unreadable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await save(bench, bucket, {"a": unreadable.content(5000), "b": b"right"})
    await node.restore()
    unreadable.lose(node.layout, 5000, monkeypatch)
    expected_logs.allow("restore.content_damaged")
    chosen = await node.chooser.choose(IDENTITY, None)
    restored = await into_directory(node.fetcher, IDENTITY, chosen, str(tmp_path / "out"))
    assert describe(tmp_path / "out") == describe(bench.tree)
    assert restored.sources == {node.ram.place: 5, bucket.place: 5000}
