"""What every sink that takes whole content out of memory does: those on the RAM tier, and beside a plain tree."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuse_tier.blobs import Source, WholeSink
from fuse_tier.errors import Damaged, NotFound, TierFull
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.staging import StagingDirectory
from fuse_tier.tiers.bucket_receive import IntoSink
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.tiers.ram import RamTier

CONTENTS = [b"", b"0", bytes(range(256)) * 16]


@pytest.fixture(params=["ram", "staging"])
def place(request: pytest.FixtureRequest, memory_path: Path) -> Source:
    if request.param == "ram":
        layout = Layout(str(memory_path))
        create_directories(layout)
        return RamTier(layout, "a")
    staging = StagingDirectory(str(memory_path / "staging"))
    staging.make()
    return staging


def files_below(directory: Path) -> list[str]:
    return [name for _, _, names in os.walk(directory) for name in names]


@contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """No file may be larger: writing fails in its middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def take(place: Source, content: bytes, said_to_be: bytes | None = None) -> None:
    assert isinstance(place, WholeSink)
    place.take(hash_bytes(content if said_to_be is None else said_to_be), memoryview(content))


@pytest.mark.parametrize("content", CONTENTS)
def test_what_was_taken_can_be_read(place: Source, content: bytes) -> None:
    take(place, content)
    with os.fdopen(place.open(hash_bytes(content)), "rb") as file:
        assert file.read() == content


def test_what_is_something_else_is_refused_and_leaves_nothing(place: Source, memory_path: Path) -> None:
    with pytest.raises(Damaged):
        take(place, b"0124", said_to_be=b"0123")
    with pytest.raises(NotFound):
        place.open(hash_bytes(b"0123"))
    assert files_below(memory_path) == []


def test_without_room_nothing_is_left(place: Source, memory_path: Path) -> None:
    with pytest.raises(TierFull), small_files_only(4096):
        take(place, bytes(8192))
    assert files_below(memory_path) == []


def test_taking_again_changes_nothing(place: Source, memory_path: Path) -> None:
    take(place, b"0123")
    names = files_below(memory_path)
    take(place, b"0123")
    assert files_below(memory_path) == names


def test_a_live_file_that_is_the_content_already_stays_that_file(memory_path: Path) -> None:
    layout = Layout(str(memory_path))
    create_directories(layout)
    tier = RamTier(layout, "a")
    take(tier, b"0123")
    before = os.stat(layout.blob(hash_bytes(b"0123"))).st_ino
    take(tier, b"0123")
    assert os.stat(layout.blob(hash_bytes(b"0123"))).st_ino == before


def test_any_other_sink_gets_it_as_it_gets_large_content() -> None:
    sink = MemoryBlobs()
    into = IntoSink(sink)
    into.take(hash_bytes(b"0123"), memoryview(b"0123"))
    assert sink.contents == {hash_bytes(b"0123"): b"0123"}
    with pytest.raises(Damaged):
        into.take(hash_bytes(b"01"), memoryview(b"02"))
