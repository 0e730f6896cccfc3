from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged
from fuse_tier.hashing import RunningHash, hash_beginning, hash_bytes, hash_descriptor
from tests.harness.unreadable import Unreadable
from tests.harness.unreadable import unreadable as unreadable


def test_the_hash_is_the_one_of_the_published_algorithm() -> None:
    # XXH3_128bits of no input: the test vector of xxHash's own specification.
    assert hash_bytes(b"") == Blob(bytes.fromhex("99aa06d3014798d86001c324468d497f"), 0)


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_file_hashes_as_its_bytes_do(size: int) -> None:
    content = os.urandom(size)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        assert hash_descriptor(file.fileno()) == hash_bytes(content)


@given(st.binary(max_size=100), st.integers(0, 100))
def test_the_offset_is_neither_used_nor_moved(content: bytes, offset: int) -> None:
    fd = os.memfd_create("content")
    try:
        os.write(fd, content)
        os.lseek(fd, offset, os.SEEK_SET)
        assert hash_descriptor(fd) == hash_bytes(content)
        assert os.lseek(fd, 0, os.SEEK_CUR) == offset
    finally:
        os.close(fd)


def test_a_hole_hashes_as_zeros() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(2_500_000)
        assert hash_descriptor(file.fileno()) == hash_bytes(bytes(2_500_000))


@pytest.mark.fuse
@pytest.mark.parametrize(("size", "readable"), [(4096, 0), (3 << 20, 2 << 20)])
def test_what_cannot_be_read_is_damaged(unreadable: Unreadable, size: int, readable: int) -> None:
    fd = unreadable.open(size, readable)
    try:
        with pytest.raises(Damaged, match="cannot be read: Input/output error"):
            hash_descriptor(fd)
        with pytest.raises(Damaged, match="cannot be read: Input/output error"):
            hash_beginning(fd, size)
    finally:
        os.close(fd)


def test_what_cannot_be_asked_for_is_no_damage() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            hash_descriptor(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, (9 << 20) + 7])
def test_a_file_is_hashed_while_it_is_written(tmp_path: Path, rng: random.Random, size: int, mapped: bool) -> None:
    content = rng.randbytes(size)
    with open(tmp_path / "file", "wb+", buffering=0) as file:
        file.truncate(size)
        running = RunningHash(file.fileno(), size, mapped=mapped)
        while running.done < size:
            before, to = running.done, min(size, running.done + rng.randrange(1, 3 << 20))
            file.seek(before)
            file.write(content[before:to])
            running.advance(to)
            assert running.digest() == hash_bytes(content[:to]).digest
        running.close()
        assert Blob(running.digest(), running.done) == hash_bytes(content)


def test_a_file_that_was_cut_is_hashed_as_far_as_it_goes(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb+", buffering=0) as file:
        file.write(b"0123")
        running = RunningHash(file.fileno(), 1 << 20)
        running.advance(1 << 20)
        assert (running.done, running.digest()) == (4, hash_bytes(b"0123").digest)
