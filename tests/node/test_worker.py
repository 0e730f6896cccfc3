from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fuse_tier.node.processes import Backoff
from fuse_tier.node.worker import Worker
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import is_running

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.001)


@pytest.fixture
def make_worker(tmp_path: Path) -> Callable[[str], Worker]:
    """A worker that runs a line of Python, which notes each start."""
    note = f"open({str(tmp_path / 'starts')!r}, 'a').write('%d\\n' % __import__('os').getpid()); "
    return lambda program: Worker([sys.executable, "-c", note + program], QUICK)


@pytest.fixture
def starts(tmp_path: Path) -> Callable[[], list[int]]:
    path = tmp_path / "starts"
    return lambda: [int(line) for line in path.read_text().splitlines()] if path.exists() else []


READY = """print('{"ready": true}', flush=True); """
WAIT = "import time; time.sleep(1000)"


async def test_a_worker_is_started_again_however_often_it_dies(
    make_worker: Callable[[str], Worker], starts: Callable[[], list[int]], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.ended")
    worker = make_worker(READY + WAIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        for life in range(1, 5):

            async def lives(life: int = life) -> bool:
                return len(starts()) == life

            await until(lives)
            await worker.ready.wait()
            os.kill(starts()[-1], signal.SIGKILL)
        nursery.cancel_scope.cancel()


async def test_a_worker_that_is_killed_before_it_was_ever_ready_is_started_again(
    make_worker: Callable[[str], Worker], starts: Callable[[], list[int]], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.ended")
    worker = make_worker("import os; os.kill(os.getpid(), 9)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)

        async def three_times() -> bool:
            return len(starts()) >= 3

        await until(three_times)
        assert not worker.refused.is_set()
        nursery.cancel_scope.cancel()


async def test_a_worker_that_says_what_nobody_understands_is_heard_on(
    make_worker: Callable[[str], Worker], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.misspoke")
    worker = make_worker("print('hello'); print('{}'); " + READY + WAIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await worker.ready.wait()
        nursery.cancel_scope.cancel()


async def test_a_worker_that_is_told_to_end_while_it_is_away_does_not_come_back(
    tmp_path: Path, starts: Callable[[], list[int]], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.ended")
    program = f"import os; open({str(tmp_path / 'starts')!r}, 'w').write(str(os.getpid())); os._exit(9)"
    worker = Worker([sys.executable, "-c", program], Backoff(first_seconds=1000, longest_seconds=1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)

        async def away() -> bool:
            return len(starts()) == 1 and not is_running(starts()[0])

        await until(away)
        await worker.end(0, trio.Event())
    assert len(starts()) == 1
