"""Who comes after a keeper: by locks that the kernel gives up when their process ends, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuse_tier.mount.succession import Holder, holder_of, inherit, stand_as_keeper

_HOLDING = """
import os, sys, time
from fuse_tier.mount.succession import inherit, stand_as_keeper
fd = int(sys.argv[2])
if sys.argv[1] == "keeper":
    print(stand_as_keeper(fd), flush=True)
else:
    heir = inherit(fd)
    print(heir is not None, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "keeper", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@contextmanager
def standing(who: str, claim: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the claim's descriptor, and tries to stand for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDING, who, str(claim)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(claim,),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


@pytest.mark.network
def test_a_keeper_that_lives_has_no_heir_though_others_have_its_descriptor(claim: int) -> None:
    with standing("keeper", claim) as keeper:
        assert holder_of(claim) is Holder.KEEPER
        assert inherit(claim) is None
        os.kill(keeper.pid, signal.SIGSTOP)  # however long it says nothing
        assert inherit(claim) is None


@pytest.mark.network
def test_a_keeper_that_died_has_one_heir_and_another_when_that_dies_as_well(claim: int) -> None:
    with standing("keeper", claim):
        pass
    assert holder_of(claim) is Holder.NOBODY
    with standing("heir", claim):
        assert holder_of(claim) is Holder.HEIR
        assert inherit(claim) is None
    heir = inherit(claim)
    assert heir is not None
    heir.close()
    assert holder_of(claim) is Holder.NOBODY


def test_the_next_keeper_gives_copies_only_when_the_heir_has_let_go(claim: int) -> None:
    heir = inherit(claim)
    assert heir is not None
    assert not stand_as_keeper(claim)
    heir.close()
    assert stand_as_keeper(claim)
    assert stand_as_keeper(claim), "it says so for each who asks for a copy"
