from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.spares import PIECE_BYTES, Spares

MIB = 1 << 20
PAGES = 4 * MIB


def kept(layout: Layout, size: int = PAGES) -> Spares:
    """Spares with one of this size."""
    spares = Spares(layout)
    with spares.begin(size) as spare:
        assert spare.fill(0, size)
        assert spare.finish()
    return spares


def left(layout: Layout) -> list[str]:
    return os.listdir(layout.spares)


def test_a_spare_becomes_a_file_whose_pages_are_there(layout: Layout) -> None:
    spares = kept(layout)
    assert spares.sizes() == [PAGES]
    before = time.time()
    directory = os.open(layout.root, os.O_RDONLY)
    fd = spares.take(PAGES, os.O_RDWR, 0o640, directory, b"file")
    assert fd is not None
    path = Path(layout.root, "file")
    found = path.stat()
    assert (found.st_size, found.st_blocks * 512, stat.S_IMODE(found.st_mode)) == (0, PAGES, 0o640)
    assert found.st_mtime >= before - 1
    os.write(fd, b"content")
    os.ftruncate(fd, PAGES)
    assert path.read_bytes() == b"content".ljust(PAGES, b"\0")
    for one in (fd, directory):
        os.close(one)
    assert left(layout) == []


def test_each_is_taken_once_and_only_for_its_size(layout: Layout) -> None:
    spares = kept(layout)
    kept(layout)
    directory = os.open(layout.root, os.O_RDONLY)
    assert spares.take(PAGES - 1, os.O_WRONLY, 0o600, directory, b"other") is None
    taken = [spares.take(PAGES, os.O_WRONLY, 0o600, directory, b"%d" % number) for number in range(3)]
    assert [fd is not None for fd in taken] == [True, True, False]
    assert Path(layout.root, "0").stat().st_ino != Path(layout.root, "1").stat().st_ino
    for fd in (directory, *taken[:2]):
        os.close(fd or 0)


def test_a_name_that_is_there_stays_whose_it_is(layout: Layout) -> None:
    spares = kept(layout)
    path = Path(layout.root, "file")
    path.write_bytes(b"theirs")
    directory = os.open(layout.root, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        spares.take(PAGES, os.O_WRONLY, 0o600, directory, b"file")
    os.close(directory)
    assert path.read_bytes() == b"theirs"
    assert left(layout) == []


def test_for_content_that_lands_it_has_its_size_its_pages_and_no_content(layout: Layout) -> None:
    spares = kept(layout)
    path = Path(layout.root, "file")
    fd = spares.take_for_content(PAGES, str(path))
    assert fd is not None
    found = os.fstat(fd)
    assert (found.st_size, found.st_blocks * 512, stat.S_IMODE(found.st_mode)) == (PAGES, PAGES, 0o600)
    assert path.stat().st_ino == found.st_ino
    assert path.read_bytes() == bytes(PAGES)
    os.close(fd)
    assert spares.take_for_content(PAGES, str(path)) is None


def test_one_that_is_being_made_is_nobodys(layout: Layout) -> None:
    spares = Spares(layout)
    with spares.begin(PAGES) as spare:
        assert spare.fill(0, PAGES // 2)
        assert spares.sizes() == []
        assert spares._claim(PAGES) is None
    assert left(layout) == []


def test_what_is_given_up_while_it_is_made_is_gone(layout: Layout) -> None:
    spares = kept(layout)
    with spares.begin(PAGES) as spare:
        assert spare.fill(0, PAGES // 2)
        spares.give_up()
        assert not spare.fill(PAGES // 2, PAGES // 2)
        assert not spare.finish()
    assert left(layout) == []


def test_some_can_be_dropped(layout: Layout) -> None:
    spares = kept(layout)
    kept(layout, 2 * PAGES)
    spares.drop(PAGES)
    spares.drop(PAGES)
    assert spares.sizes() == [2 * PAGES]


def with_pieces(layout: Layout, count: int) -> Spares:
    """Pieces without pages: what is counted is their names."""
    spares = Spares(layout)
    for _ in range(count):
        with spares.begin_piece() as piece:
            assert piece.finish()
    return spares


def test_pieces_are_released_whole_as_content_of_any_size_needs_them(layout: Layout) -> None:
    spares = with_pieces(layout, 4)
    left_after = []
    for size in (MIB, PIECE_BYTES - MIB, MIB, PIECE_BYTES, 5 * PIECE_BYTES, MIB):
        spares.release(size)
        left_after.append(spares.pieces())
    assert left_after == [3, 3, 2, 1, 0, 0]


def test_what_a_file_was_promised_is_not_released(layout: Layout) -> None:
    spares = with_pieces(layout, 1)
    kept(layout, PAGES)
    kept(layout, PIECE_BYTES)
    spares.release(8 * PIECE_BYTES)
    assert sorted(spares.sizes()) == [PAGES, PIECE_BYTES]
    assert spares.pieces() == 0


def test_pieces_are_room_like_all_spares_and_go_with_them(layout: Layout) -> None:
    spares = with_pieces(layout, 3)
    kept(layout)
    assert sum(spares.sizes()) == 3 * PIECE_BYTES + PAGES
    assert spares.sizes_made_for() == [PAGES]
    spares.drop(PIECE_BYTES)
    assert spares.pieces() == 3, "none was made for a file of this size"
    spares.drop_pieces(2)
    assert spares.pieces() == 1
    spares.give_up()
    assert left(layout) == []
