"""Random operations on a mount and on a plain tmpfs directory have the same outcome."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fs.callers import let_everybody_in
from tests.fs.evicting import EvictingMachine, evicting_worker
from tests.fs.filling import Fillable
from tests.fs.machine import Machine
from tests.fs.mortal import MortalMachine
from tests.fs.mounted import Mounted
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.root]


_TIER_BYTES = 512 << 20


@contextmanager
def small_tmpfs(path: Path) -> Iterator[Path]:
    """One of its own, as the node mounts ours: its devices cannot be opened."""
    options = f"nosuid,nodev,size={_TIER_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "oracle", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def memory_path(memory_path: Path) -> Iterator[Path]:
    """A tmpfs that can be filled, in the place of the one that all share."""
    with small_tmpfs(memory_path) as path:
        yield path


@pytest.fixture
def reference(memory_path: Path) -> Iterator[Path]:
    """A plain tmpfs."""
    path = memory_path / "reference"
    path.mkdir()
    before = os.umask(0o022)
    try:
        with small_tmpfs(path):
            yield path
    finally:
        os.umask(before)


def check(machine: type[Machine], mounted: Mounted, reference: Path, rng: random.Random, examples: int) -> None:
    """Runs the machine, so that the session's seed brings the same examples again."""
    for root in (mounted.path, reference):
        let_everybody_in(root)
    numbers_of_examples = count(1)
    tiers = (Fillable(mounted.place.base, _TIER_BYTES), Fillable(reference, _TIER_BYTES))

    class Bound(machine):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(mounted, reference, next(numbers_of_examples))
            self.tiers = tiers

    run_state_machine_as_test(
        seed(rng.getrandbits(64))(Bound),
        # Not shrunk: an example takes seconds. The seed brings it again.
        settings=settings(
            settings.default, max_examples=examples, stateful_step_count=60, phases=[Phase.explicit, Phase.generate]
        ),
    )


def test_random_operations_have_the_outcome_that_they_have_on_a_tmpfs(
    mounted: Mounted, reference: Path, rng: random.Random
) -> None:
    check(Machine, mounted, reference, rng, examples=20)


@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
def test_random_operations_have_the_same_outcome_while_content_is_given_up(
    mounted: Mounted, reference: Path, rng: random.Random, examples: int
) -> None:
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
