"""A daemon or a worker dies at any line, and every blob is what its name says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_tier.hashing import hash_bytes
from fuse_tier.ram import pins as pins_module
from fuse_tier.ram.layout import Layout
from tests.ram.crashing import survives
from tests.ram.pinned import Volume

Step = Callable[[Volume], object]


def _arrange_nothing(volume: Volume) -> None:
    volume.create("weights", b"0123")


def _arrange_pinned(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.pin(str(volume.path("weights")), inode)


def _arrange_sealed(volume: Volume) -> None:
    volume.create("weights", b"0123")
    volume.seal("weights")


def _arrange_equal(volume: Volume) -> None:
    volume.create("other", b"0123")
    volume.seal("other")
    _arrange_pinned(volume)


def _arrange_equal_sealed(volume: Volume) -> None:
    volume.create("weights", b"0123")
    volume.seal("weights")
    volume.create("other", b"0123")
    volume.seal("other")


def _arrange_detached(volume: Volume) -> None:
    _arrange_pinned(volume)
    volume.write("weights", b"4567")


def _arrange_collected(volume: Volume) -> None:
    _arrange_sealed(volume)
    os.unlink(volume.layout.blob(hash_bytes(b"0123")))


def _pin(volume: Volume) -> None:
    volume.pins.pin(str(volume.path("weights")), volume.inode("weights"))


def _adopt(volume: Volume) -> None:
    inode = volume.inode("weights")
    assert volume.pins.adopt(inode, *volume.hash(inode))


def _detach(volume: Volume) -> None:
    volume.pins.detach(volume.inode("weights"))


def _recover(volume: Volume) -> None:
    volume.pins.recover()


@pytest.mark.parametrize(
    ("arrange", "step"),
    [
        (_arrange_nothing, _pin),
        (_arrange_collected, _pin),
        (_arrange_detached, _pin),
        (_arrange_pinned, _adopt),
        (_arrange_equal, _adopt),
        (_arrange_detached, _adopt),
        (_arrange_pinned, _detach),
        (_arrange_sealed, _detach),
        (_arrange_equal_sealed, _detach),
        (_arrange_collected, _detach),
        (_arrange_detached, _recover),
        (_arrange_pinned, _recover),
    ],
    ids=lambda function: function.__name__.removeprefix("_arrange").lstrip("_"),
)
@pytest.mark.parametrize("worker_follows", [True, False])
def test_a_process_may_die_at_any_line(layout: Layout, arrange: Step, step: Step, worker_follows: bool) -> None:
    for lines, volume in enumerate(_fresh_volumes(layout)):
        arrange(volume)
        before = volume.path("weights").read_bytes()
        ended = survives(pins_module, lines, lambda volume=volume: step(volume))  # type: ignore[misc]
        volume.check_every_blob_is_safe()
        assert volume.path("weights").read_bytes() == before
        if worker_follows:
            volume.pins.recover()
            assert volume.seal("weights") == hash_bytes(before)
            volume.check_every_blob_is_safe()
        kept = {path: path.read_bytes() for path in Path(layout.blobs).glob("*/*")}
        volume.write("weights", b"written after the crash")
        assert {path: path.read_bytes() for path in kept} == kept
        volume.check_every_blob_is_safe()
        assert volume.kept(volume.seal("weights")) == b"written after the crash"
        if ended:
            return


def _fresh_volumes(layout: Layout) -> Iterator[Volume]:
    for number in range(200):
        root = Path(layout.root) / str(number)
        fresh = Layout(str(root))
        for directory in (fresh.blobs, fresh.incoming):
            os.makedirs(directory)
        yield Volume(fresh)
    pytest.fail("the step never ends")
