"""A mount and a plain tmpfs side by side: what tests of random operations share."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fs.callers import let_everybody_in
from tests.fs.filling import Fillable

_TIER_BYTES = 512 << 20
_numbers_of_examples = count(1)


@contextmanager
def small_tmpfs(path: Path) -> Iterator[Path]:
    """One of its own, as the node mounts ours: its devices cannot be opened."""
    options = f"nosuid,nodev,size={_TIER_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "oracle", str(path)], check=True)
    try:
        (path / "page").write_bytes(b"x")  # one that is made as small as what it holds: no bytes would mean no limit
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


def check(machine: Any, mounted: Any, reference: Path, rng: random.Random, examples: int) -> None:
    """Runs the machine, so that the session's seed brings the same examples again."""
    for root in (mounted.path, reference):
        let_everybody_in(root)
    tiers = (Fillable(mounted.place.base, _TIER_BYTES), Fillable(reference, _TIER_BYTES))

    class Bound(machine):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(mounted, reference, next(_numbers_of_examples))
            self.tiers = tiers

    run_state_machine_as_test(
        seed(rng.getrandbits(64))(Bound),
        # Not shrunk: an example takes seconds. The seed brings it again.
        settings=settings(
            settings.default, max_examples=examples, stateful_step_count=60, phases=[Phase.explicit, Phase.generate]
        ),
    )
