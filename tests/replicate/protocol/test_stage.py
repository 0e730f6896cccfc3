"""What is swept and brought at the root of a tree, and what of it is taken back."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from fuse_tier.fs.arranging import Arranging
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.nodes import Nodes
from fuse_tier.mount.deposits import Depositor, connection_pair
from fuse_tier.replicate.protocol.stage import Stage
from tests.replicate.conftest import Bench


@pytest.fixture
def stage(bench: Bench) -> Iterator[Stage]:
    """Of a mounted volume, whose daemon arranges names as the real one does."""
    keeper, daemon = connection_pair()
    with keeper, daemon:
        nodes = Nodes(str(bench.tree), Depositor(daemon), inherits=False)
        arranging = Arranging(bench.volume.layout, nodes, Changes(0))

        async def arrange(away: Collection[str], bring: Collection[tuple[str, str]]) -> None:
            encoded = [(os.fsencode(source), os.fsencode(name)) for source, name in bring]
            await arranging.arrange([os.fsencode(name) for name in away], encoded)

        bench.volume.arrange = arrange
        yield Stage(bench.volume)
        nodes.close()


def state(tree: Path) -> dict[str, str]:
    """Every file and link below, with what it has."""
    paths = sorted(path for path in tree.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(tree)): os.readlink(path) if path.is_symlink() else path.read_text() for path in paths
    }


def save(tree: Path, *steps: int) -> None:
    for step in steps:
        (tree / f"step_{step}").mkdir()
        (tree / f"step_{step}" / "weights").write_text(str(step))


async def test_a_pod_that_ends_before_its_step_was_agreed_on_leaves_the_tree_that_it_had(
    bench: Bench, stage: Stage
) -> None:
    """Back from 300 to 200: names that both have are there twice, once swept and once brought."""
    save(bench.tree, 100, 200, 300)
    (bench.tree / "latest").write_text("300")
    (bench.tree / "newest").symlink_to("step_300")
    (bench.tree / "link").symlink_to("step_300")  # a directory in the tree of 200
    (bench.tree / "state").mkdir()
    (bench.tree / "state" / "of").write_text("300")
    before = state(bench.tree)

    await stage.begin()
    staged = Path(bench.volume.layout.staged)
    (staged / "latest").write_text("200")
    (staged / "newest").symlink_to("step_200")
    for name in ("link", "state"):
        (staged / name).mkdir()
        (staged / name / "of").write_text("200")
    both = ["latest", "link", "newest", "state"]
    await stage.arrange([*both, "step_300"], [(name, name) for name in both])
    assert state(bench.tree)["latest"] == "200"

    await stage.undo()
    assert state(bench.tree) == before
    assert not bench.volume.is_arranged
    assert not staged.exists()


async def test_messages_to_a_life_that_has_ended_do_not_come_back_with_its_steps(bench: Bench, stage: Stage) -> None:
    save(bench.tree, 5)
    (bench.tree / "step_5").rename(bench.tree / "5")
    (bench.tree / "replicator.yaml").write_text("an order")
    (bench.tree / "llama-s5-n0-w0.restore").touch()
    await stage.begin()
    await stage.arrange(await stage.stale(), [])
    assert state(bench.tree) == {}
    await stage.undo()
    assert state(bench.tree) == {"5/weights": "5"}
