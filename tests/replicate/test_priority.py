"""The worker's processes go after the job's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json, os
from fuse_tier.replicate.priority import give_way
before = os.nice(0)
give_way()
try:
    session = open("/proc/self/autogroup").read().split()[-1]
except OSError:
    session = None
print(json.dumps({"before": before, "own": os.nice(0), "session": session}))
"""


def what_it_has(niceness: int = 0, *, leads: bool) -> dict[str, int | str | None]:
    command = ["nice", "-n", str(niceness), sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, start_new_session=leads, check=True, capture_output=True, text=True)
    said: dict[str, int | str | None] = json.loads(done.stdout)
    return said


def test_a_worker_goes_after_jobs_wherever_the_kernel_weighs() -> None:
    said = what_it_has(leads=True)
    assert said["own"] == max(5, int(said["before"] or 0))
    if Path("/proc/self/autogroup").exists():
        assert said["session"] == "5"


def test_a_worker_that_was_started_with_less_keeps_that() -> None:
    assert what_it_has(15, leads=True)["own"] == 15 + os.nice(0)


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="needs a kernel with CONFIG_SCHED_AUTOGROUP")
def test_a_session_that_is_somebody_elses_stays_as_it_is() -> None:
    before = Path("/proc/self/autogroup").read_text().split()[-1]
    assert what_it_has(leads=False)["session"] == before
