"""Random operations on a mount and on a plain tmpfs directory have the same outcome."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fs.evicting import EvictingMachine, evicting_worker
from tests.fs.machine import Machine
from tests.fs.mortal import MortalMachine
from tests.fs.mounted import Mounted
from tests.fs.side_by_side import check, memory_path, reference
from tests.harness.logs import ExpectedLogs

__all__ = ["memory_path", "reference"]

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_random_operations_have_the_outcome_that_they_have_on_a_tmpfs(
    mounted: Mounted, reference: Path, rng: random.Random
) -> None:
    check(Machine, mounted, reference, rng, examples=20)


@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
def test_random_operations_have_the_same_outcome_while_content_is_given_up_and_the_daemon_dies(
    mounted: Mounted, reference: Path, rng: random.Random, examples: int, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    expected_logs.allow("worker.refused")  # the daemon may come back to a worker that is just ending
    with evicting_worker(mounted.place) as worker:

        class Evicting(EvictingMachine):
            pass

        Evicting.worker = worker
        check(Evicting, mounted, reference, rng, examples)
        assert worker.fetched


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_many_random_operations_have_the_outcome_that_they_have_on_a_tmpfs(
    mounted: Mounted, reference: Path, rng: random.Random
) -> None:
    check(Machine, mounted, reference, rng, examples=300)


def test_random_operations_have_the_same_outcome_while_the_daemon_dies(
    mounted: Mounted, reference: Path, rng: random.Random, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    check(MortalMachine, mounted, reference, rng, examples=20)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_many_random_operations_have_the_same_outcome_while_the_daemon_dies(
    mounted: Mounted, reference: Path, rng: random.Random, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    check(MortalMachine, mounted, reference, rng, examples=300)
