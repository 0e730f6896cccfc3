from __future__ import annotations

import os
import signal
import sys

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.errors import FuseTierError
from fuse_tier.node.processes import Backoff, Process, describe, running, start_lasting
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import is_running

SAY_PID = "import os; print('{\"pid\": %d}' % os.getpid(), flush=True); "
SLEEP = "import time; time.sleep(1000)"


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@given(failures=st.integers(1, 10_000), ran_seconds=st.floats(0, 1e6))
def test_waits_grow_to_their_bound_and_start_over_after_a_steady_run(failures: int, ran_seconds: float) -> None:
    backoff = Backoff(first_seconds=0.5, longest_seconds=8.0, steady_seconds=30.0)
    assert 0.5 <= backoff.delay(failures) <= backoff.delay(failures + 1) <= 8.0
    assert backoff.count(failures, ran_seconds) == (1 if ran_seconds >= 30 else failures + 1)


def test_the_first_wait_is_short_and_each_doubles() -> None:
    assert [Backoff(0.25, 2.0).delay(failures) for failures in (1, 2, 3, 4, 5)] == [0.25, 0.5, 1.0, 2.0, 2.0]


async def test_a_process_reads_what_it_is_told_and_is_read() -> None:
    program = "import sys, json; print(json.dumps({'read': len(sys.stdin.read())})); print('{}')"
    async with running(python(program), "reader", told="x" * 200_000) as child:
        assert await child.next_line() == {"read": 200_000}
        assert await child.next_line() == {}
        assert await child.next_line() is None
        assert await child.wait() == 0


@pytest.mark.parametrize("said", ["garbage", "[1]"])
async def test_a_line_that_is_no_object_is_an_error(said: str) -> None:
    async with running(python(f"print({said!r}); print('{{}}')"), "babbler") as child:
        with pytest.raises(FuseTierError, match="which nobody understands"):
            await child.next_line()
        assert await child.next_line() == {}


async def test_a_line_without_end_is_an_error_before_it_fills_the_memory() -> None:
    async with running(python("while True: print('x' * 1000, end='')"), "babbler") as child:
        with pytest.raises(FuseTierError, match="which nobody understands"):
            await child.next_line()


async def test_a_command_that_does_not_exist_ends_with_127(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(["/nowhere/at/all"], "ghost") as child:
        assert await child.wait() == 127
    assert "/nowhere/at/all" in capfd.readouterr().err


async def test_a_process_is_gone_when_its_block_is_left() -> None:
    with trio.CancelScope() as scope:
        async with running(python(SLEEP), "sleeper") as child:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not is_running(child.pid)


async def test_an_error_in_the_block_comes_out_as_it_is_and_ends_the_process() -> None:
    with pytest.raises(KeyError):
        async with running(python(SLEEP), "sleeper") as child:
            raise KeyError
    assert not is_running(child.pid)


async def test_what_a_process_has_started_goes_with_it() -> None:
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SAY_PID + SLEEP!r}]); {SLEEP}"
    async with running(python(program), "parent") as child:
        said = await child.next_line()
        assert said is not None
        os.kill(child.pid, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL

    async def gone() -> bool:
        return not is_running(said["pid"])

    await until(gone)


async def test_several_may_wait_for_one_end() -> None:
    async with running(python(SLEEP), "sleeper") as child:
        statuses = []

        async def wait() -> None:
            statuses.append(await child.wait())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            child.kill()
        assert statuses == [-signal.SIGKILL] * 3


async def test_a_process_of_somebody_elses_is_watched_and_ended_too() -> None:
    async with running(python(SLEEP), "sleeper") as child:
        stranger = Process("sleeper", child.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stranger.wait)
            nursery.start_soon(stranger.end, 60)
        assert await stranger.wait() is None
        assert await child.wait() == -signal.SIGTERM
        stranger.kill()  # it reaches nobody
        stranger.close()
        with pytest.raises(ProcessLookupError):
            Process("sleeper", child.pid)


async def test_a_process_that_may_last_is_in_a_session_of_its_own() -> None:
    child = start_lasting(python(SLEEP), "sleeper")
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    await child.destroy()
    child.close()


async def test_a_process_that_ends_on_sigterm_is_not_killed() -> None:
    program = f"import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); {SAY_PID}{SLEEP}"
    async with running(python(program), "polite") as child:
        await child.next_line()
        await child.end(60)
        assert await child.wait() == 7


@pytest.mark.parametrize("hurried", [False, True])
async def test_a_process_that_is_deaf_to_sigterm_is_killed(expected_logs: ExpectedLogs, *, hurried: bool) -> None:
    expected_logs.allow("process.killed")
    program = f"import signal; signal.signal(15, signal.SIG_IGN); {SAY_PID}{SLEEP}"
    hurry = trio.Event()
    if hurried:
        hurry.set()
    async with running(python(program), "deaf") as child:
        await child.next_line()
        await child.end(1000 if hurried else 0.1, hurry)
        assert await child.wait() == -signal.SIGKILL


async def test_a_signal_to_what_has_ended_reaches_nobody() -> None:
    async with running(python(""), "brief") as child:
        await child.wait()
        child.signal(signal.SIGTERM)
        child.kill()
        await child.end(1)


async def test_a_process_is_out_of_reach_of_ctrl_c_in_the_terminal() -> None:
    async with running(python(SLEEP), "sleeper") as child:
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
        assert os.getsid(child.pid) == child.pid != os.getsid(0)


async def test_a_child_is_started_by_the_main_thread_only() -> None:
    async def start() -> None:
        async with running(python(""), "brief"):
            pass

    with pytest.raises(RuntimeError, match="start it in the main thread"):
        await trio.to_thread.run_sync(trio.run, start)


def test_an_end_is_told_in_words() -> None:
    assert describe(3) == "ended with status 3"
    assert describe(-9) == "was ended by SIGKILL"
    assert describe(-40) == "was ended by signal 40"
