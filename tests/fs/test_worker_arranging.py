"""Names at the root that the worker has taken away and put there, as a job sees them that knew others before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fs.jobs import job
from tests.fs.mounted import Mounted
from tests.fs.worker import running_worker
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse


def prepare(mounted: Mounted) -> Path:
    """What a worker makes before it asks; gives where it stages."""
    for directory in (mounted.place.volume.staged, mounted.place.volume.swept):
        os.makedirs(directory, exist_ok=True)
    return Path(mounted.place.volume.staged)


async def test_a_job_that_knows_a_name_sees_at_once_that_it_has_gone(mounted: Mounted) -> None:
    root = mounted.path

    def save_and_order() -> int:
        (root / "30.orbax-checkpoint-tmp").mkdir()
        (root / "30.orbax-checkpoint-tmp/weights").write_bytes(b"thirty")
        (root / "30.orbax-checkpoint-tmp").rename(root / "30")
        (root / "replicator.yaml.tmp").write_bytes(b"order")
        assert (root / "30/weights").read_bytes() == b"thirty"  # the kernel knows the way by now
        os.replace(root / "replicator.yaml.tmp", root / "replicator.yaml")
        assert (root / "replicator.yaml").exists()
        assert not (root / "job-s20-n0-w0.restore").exists()
        return os.open(root / "30/weights", os.O_RDONLY)

    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        staged = prepare(mounted)
        held = await job(save_and_order)
        (staged / "marker").mkdir()
        (staged / "marker/weights").write_bytes(b"twenty")
        orders = {"away": ["30", "replicator.yaml"], "bring": [["marker", "job-s20-n0-w0.restore"]]}
        await worker.ask("arrange", **orders)

        def look() -> None:
            assert os.listdir(root) == ["job-s20-n0-w0.restore"]
            assert not (root / "30").exists()
            assert not (root / "30/weights").exists()
            assert not (root / "replicator.yaml").exists()
            assert (root / "job-s20-n0-w0.restore/weights").read_bytes() == b"twenty"
            assert os.pread(held, 100, 0) == b"thirty"
            os.close(held)
            (root / "job-s20-n0-w0.restore").rename(root / "20")
            assert (root / "20/weights").read_bytes() == b"twenty"

        await job(look)
        assert os.listdir(mounted.place.volume.swept) in (["30", "replicator.yaml"], ["replicator.yaml", "30"])
        # The answer was lost, and the worker asks again: what the job has made of it stays.
        await worker.ask("arrange", **orders)
        assert await job(lambda: os.listdir(root)) == ["20"]


async def test_what_is_put_in_a_names_place_is_not_taken_away_when_it_is_asked_for_again(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        staged = prepare(mounted)
        await job(lambda: (mounted.path / "replicator.failed").write_text("of before"))
        (staged / "replicator.failed").write_text("of now")
        for _ in range(2):
            await worker.ask(
                "arrange", away=["replicator.failed"], bring=[["replicator.failed", "replicator.failed"]]
            )
            assert await job(lambda: (mounted.path / "replicator.failed").read_text()) == "of now"


async def test_a_daemon_that_comes_after_a_crash_goes_on_with_what_was_arranged(
    mounted: Mounted, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    root = mounted.path
    staged = prepare(mounted)
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await job(lambda: (root / "10").mkdir())
        await job(lambda: (root / "10/weights").write_bytes(b"ten"))
        await worker.ask("arrange", away=["10"], bring=[])
        Path(mounted.place.volume.order).touch()  # as the worker remembers the order
        mounted.kill_daemon()
        await worker.heard_often("hello", 2)
        os.rename(Path(mounted.place.volume.swept) / "10", staged / "job-s10-n0-w0.restore")
        name = "job-s10-n0-w0.restore"
        await worker.ask("arrange", away=[], bring=[[name, name]])
        assert await job(lambda: os.listdir(root)) == [name]
        assert await job(lambda: (root / name / "weights").read_bytes()) == b"ten"
        assert not await job((root / "10").exists)
