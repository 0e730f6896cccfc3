"""The worker's processes go after the job's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.network

_PROGRAM = """
import json, os
from fuse_tier.replicate.priority import give_way

def of_session():
    try:
        return (open("/proc/self/autogroup").read().split() or [None])[-1]
    except OSError:
        return None

before, session = os.nice(0), of_session()
give_way()
print(json.dumps({"before": before, "own": os.nice(0), "session_before": session, "session": of_session()}))
"""


def what_it_has(niceness: int = 0, *, leads: bool) -> dict[str, int | str | None]:
    command = ["nice", "-n", str(niceness), sys.executable, "-c", _PROGRAM]
    if not leads:  # a shell that has something to do afterwards stays, and leads
        command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(command, start_new_session=True, check=True, capture_output=True, text=True)
    said: dict[str, int | str | None] = json.loads(done.stdout)
    return said


def test_a_worker_goes_after_jobs_wherever_the_kernel_weighs() -> None:
    said = what_it_has(leads=True)
    assert said["own"] == max(5, int(said["before"] or 0))
    if said["session_before"] is not None:  # a kernel that weighs by session
        assert said["session"] == "5"


def test_a_worker_that_was_started_with_less_keeps_that() -> None:
    said = what_it_has(15, leads=True)
    assert said["own"] == said["before"] == min(19, 15 + os.nice(0))  # none has less than 19


def test_a_session_that_is_somebody_elses_stays_as_it_is() -> None:
    said = what_it_has(leads=False)
    assert said["session"] == said["session_before"]
    assert said["own"] == max(5, int(said["before"] or 0))
