"""Requests that come again after a daemon's death, and must not be done twice nor be taken for done."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.nodes import ROOT, Nodes
from fuse_tier.fs.requests import Request
from fuse_tier.mount.deposits import Depositor, Safe, connection_pair
from fuse_tier.mount.messages import RESENT, Opcode

NAME = b"user.mine"


class Life:
    """A daemon's attributes of one tree, as far as they need nothing else; ``next`` is the daemon after its death."""

    def __init__(self, tree: Path, safe: Safe) -> None:
        self._tree, self._safe = tree, safe
        self._ours, theirs = connection_pair()
        depositor = Depositor(theirs)
        self._theirs = theirs
        self._nodes = Nodes(str(tree), depositor, inherits=True)
        handles = Handles(depositor, 0)
        handles.adopt(list(safe.contents.values()))
        nothing: Any = None
        self.attributes = Attributes(nothing, self._nodes, handles, nothing, nothing)

    def next(self) -> Life:
        self.end()
        return Life(self._tree, self._safe)

    def end(self) -> None:
        self._theirs.close()
        self._safe.receive(self._ours)
        self._ours.close()
        self._nodes.close()


@pytest.fixture
def tree(memory_path: Path) -> Path:
    probe = memory_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, NAME, b"1")
    except OSError:
        pytest.skip("needs a kernel whose tmpfs has attributes under user.")
    probe.unlink()
    return memory_path


@pytest.fixture
def life(tree: Path) -> Iterator[Callable[[], Life]]:
    lives = [Life(tree, Safe())]

    def next_life() -> Life:
        lives.append(lives[-1].next())
        return lives[-1]

    yield next_life
    lives[-1].end()


def request(unique: int, *, resent: bool = False) -> Request:
    made = Request(Opcode.SETXATTR, unique | (RESENT if resent else 0), ROOT, 0, 0, 1)
    made.resent = resent
    return made


def fails_with(code: int, action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno == code


def create(life: Life, asked: Request) -> None:
    life.attributes.store(ROOT, NAME, b"value", os.XATTR_CREATE, asked)


def test_an_attribute_that_was_made_for_a_request_is_its_answer_when_it_comes_again(
    life: Callable[[], Life], tree: Path
) -> None:
    create(life(), request(2))
    create(life(), request(2, resent=True))
    assert os.getxattr(tree, NAME) == b"value"


def test_an_attribute_that_was_there_before_a_request_is_in_its_way_also_when_it_comes_again(
    life: Callable[[], Life], tree: Path
) -> None:
    os.setxattr(tree, NAME, b"value")
    first = life()
    fails_with(errno.EEXIST, lambda: create(first, request(2)))
    second = life()
    fails_with(errno.EEXIST, lambda: create(second, request(2, resent=True)))


def test_an_attribute_that_was_removed_for_a_request_is_gone_when_it_comes_again(
    life: Callable[[], Life], tree: Path
) -> None:
    os.setxattr(tree, NAME, b"value")
    life().attributes.remove(ROOT, NAME, request(4))
    life().attributes.remove(ROOT, NAME, request(4, resent=True))
    assert os.listxattr(tree) == []


def test_an_attribute_that_was_never_there_cannot_be_removed_also_when_that_comes_again(
    life: Callable[[], Life], tree: Path
) -> None:
    os.setxattr(tree, b"user.other", b"value")
    life().attributes.remove(ROOT, b"user.other", request(4))
    second = life()
    fails_with(errno.ENODATA, lambda: second.attributes.remove(ROOT, NAME, request(6, resent=True)))


def test_a_word_is_of_one_request(life: Callable[[], Life]) -> None:
    create(life(), request(2))
    second = life()
    fails_with(errno.EEXIST, lambda: create(second, request(8, resent=True)))
    fails_with(errno.EEXIST, lambda: create(second, request(2)))
