from __future__ import annotations

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.replicate import resting
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.resting import Resting
from tests.harness.waiting import until
from tests.replicate.conftest import Bench

MIB = 1 << 20


class Kernel:
    """Takes notes of what it is asked to bring together, and of how often somebody looks whether there is time."""

    def __init__(self, *, willing: bool = True) -> None:
        self.asked: list[tuple[str, int]] = []
        self.willing = willing
        self.busy = False
        self.looks = 0

    def bring(self, path: str, offset: int, size: int) -> bool:
        self.asked.append((path, offset))
        return self.willing

    def is_busy(self) -> bool:
        self.looks += 1
        return self.busy

    def resting(self, bench: Bench) -> Resting:
        return Resting(bench.layout, [bench.volume], self.is_busy, 2 * MIB, self.bring)

    async def was_looked_at(self) -> None:
        """Often enough for something to be done, if there were time."""
        enough = self.looks + 5

        async def are_enough() -> bool:
            return self.looks >= enough

        await until(are_enough)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "_LOOK_EVERY_SECONDS", 0.01)


async def until_nothing_waits(resting: Resting) -> None:
    async def nothing_waits() -> bool:
        return resting.waiting_bytes == 0

    await until(nothing_waits)


async def saved(bench: Bench, name: str, size: int) -> Blob:
    (bench.tree / name).write_bytes(name.encode() * (size // len(name)))
    bench.volume.changes.announce()
    snapshot = await bench.volume.take_snapshot()
    assert snapshot is not None
    (blob,) = (entry.blob for entry in snapshot.entries if entry.path == name.encode() and entry.blob)
    return blob


async def test_large_content_is_brought_together_once(bench: Bench, nursery: trio.Nursery) -> None:
    kernel = Kernel()
    resting = kernel.resting(bench)
    await saved(bench, "small", 2 * MIB - 5)
    large = await saved(bench, "l", 65 * MIB)
    assert resting.waiting_bytes == 65 * MIB
    nursery.start_soon(resting.run)
    await until_nothing_waits(resting)
    path = bench.layout.blob(large)
    assert kernel.asked == [(path, 0), (path, 32 * MIB)], "the last part is too small"
    more = await saved(bench, "m", 4 * MIB)
    await until_nothing_waits(resting)
    await kernel.was_looked_at()
    assert kernel.asked[2:] == [(bench.layout.blob(more), 0)]


@pytest.mark.parametrize("what", ["copies", "changes", "a restore"])
async def test_nothing_is_done_while_there_is_something_else_to_do(
    bench: Bench, nursery: trio.Nursery, what: str
) -> None:
    kernel = Kernel()
    await saved(bench, "l", 4 * MIB)
    if what == "copies":
        kernel.busy = True
    elif what == "changes":
        bench.volume.changes.announce()
    else:
        bench.volume.coming = Chosen(None)
    resting = kernel.resting(bench)
    nursery.start_soon(resting.run)
    await kernel.was_looked_at()
    assert kernel.asked == []
    kernel.busy = False
    bench.volume.coming = None
    await bench.volume.take_snapshot()
    await until_nothing_waits(resting)
    assert len(kernel.asked) == 1


async def test_what_was_interrupted_is_done_when_there_is_time_again(bench: Bench, nursery: trio.Nursery) -> None:
    class Interrupted(Kernel):
        def bring(self, path: str, offset: int, size: int) -> bool:
            self.busy = not self.asked
            return super().bring(path, offset, size)

    kernel = Interrupted()
    await saved(bench, "l", 64 * MIB)
    resting = kernel.resting(bench)
    nursery.start_soon(resting.run)

    async def was_interrupted() -> bool:
        return kernel.busy

    await until(was_interrupted)
    await kernel.was_looked_at()
    assert [offset for _, offset in kernel.asked] == [0]
    assert resting.waiting_bytes == 64 * MIB
    kernel.busy = False
    await until_nothing_waits(resting)
    assert [offset for _, offset in kernel.asked] == [0, 0, 32 * MIB]


async def test_a_kernel_that_will_not_hear_of_it_is_not_asked_again(bench: Bench, nursery: trio.Nursery) -> None:
    kernel = Kernel(willing=False)
    await saved(bench, "l", 64 * MIB)
    await saved(bench, "m", 4 * MIB)
    resting = kernel.resting(bench)
    nursery.start_soon(resting.run)
    await until_nothing_waits(resting)
    assert len(kernel.asked) == 1
