from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.identity import Identity
from fuse_tier.ram import pins as pins_module
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins
from tests.ram.crashing import survives


class Volume:
    """A live tree, and what its daemon and its worker do to it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.volume: VolumeLayout = layout.volume(Identity("default", "llama", "0"))
        for directory in (self.volume.tree, self.volume.pins, self.volume.remote):
            os.makedirs(directory)
        self.pins = Pins(layout, self.volume)

    def path(self, name: str) -> Path:
        return Path(self.volume.tree) / name

    def inode(self, name: str) -> int:
        return self.path(name).stat().st_ino

    def create(self, name: str, content: bytes) -> int:
        self.path(name).write_bytes(content)
        return self.inode(name)

    def write(self, name: str, content: bytes) -> None:
        """What a daemon does for a job that opens a file for writing."""
        self.pins.detach(self.inode(name))
        self.path(name).write_bytes(content)

    def hash(self, inode: int) -> tuple[os.stat_result, Blob]:
        """What a worker does with a pin."""
        fd = os.open(self.pins.path(inode), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return os.fstat(fd), hash_descriptor(fd)
        finally:
            os.close(fd)

    def seal(self, name: str) -> Blob:
        inode = self.inode(name)
        self.pins.pin(str(self.path(name)), inode)
        known = self.pins.known_blob(inode)
        if known is None:
            hashed, known = self.hash(inode)
            assert self.pins.adopt(inode, hashed, known)
        return known

    def kept(self, blob: Blob) -> bytes:
        return Path(self.layout.blob(blob)).read_bytes()

    def check_every_blob_is_safe(self) -> None:
        """A blob that is a live file's inode has a pin that says so, and is what its name says."""
        live = {path.stat().st_ino for path in Path(self.volume.tree).iterdir()}
        for path in Path(self.layout.blobs).glob("*/*"):
            assert hash_bytes(path.read_bytes()).name == path.name
            inode = path.stat().st_ino
            if inode in live:
                assert self.pins.known_blob(inode) == Blob.parse(path.name)
                assert self.pins.shares_inode(inode)


@pytest.fixture
def volume(layout: Layout) -> Volume:
    return Volume(layout)


def test_a_sealed_file_and_its_blob_are_one_inode_and_cost_nothing(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    assert blob == hash_bytes(b"0123")
    assert os.stat(volume.layout.blob(blob)).st_ino == inode
    assert volume.path("weights").stat().st_nlink == 2
    assert volume.pins.shares_inode(inode)
    assert volume.pins.known_blob(inode) == blob
    assert os.listdir(volume.layout.incoming) == []
    assert os.listdir(volume.volume.pins) == [str(inode)]


def test_content_never_changes_after_a_detach_and_the_live_file_keeps_its_inode(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    volume.write("weights", b"4567")
    assert volume.kept(blob) == b"0123"
    assert volume.inode("weights") == inode
    assert volume.path("weights").stat().st_nlink == 1
    assert volume.pins.known_blob(inode) is None
    assert not volume.pins.shares_inode(inode)
    assert os.listdir(volume.volume.pins) == []


def test_a_file_can_be_sealed_and_written_again_and_again(volume: Volume) -> None:
    volume.create("weights", b"")
    blobs = []
    for number in range(5):
        volume.write("weights", b"%d" % number)
        blobs.append(volume.seal("weights"))
    assert [volume.kept(blob) for blob in blobs] == [b"0", b"1", b"2", b"3", b"4"]


def test_equal_content_is_kept_once_and_either_file_may_be_written(volume: Volume) -> None:
    first, second = volume.create("a", b"same"), volume.create("b", b"same")
    blob = volume.seal("a")
    assert volume.seal("b") == blob
    assert volume.pins.shares_inode(first)
    assert not volume.pins.shares_inode(second)
    assert volume.path("b").stat().st_nlink == 1
    volume.write("b", b"else")
    assert volume.kept(blob) == b"same"
    assert volume.pins.known_blob(first) == blob
    volume.write("a", b"more")
    assert volume.kept(blob) == b"same"
    assert volume.pins.known_blob(first) is None


def test_detaching_what_is_not_pinned_does_nothing(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.detach(inode)
    assert volume.path("weights").read_bytes() == b"0123"
    assert not volume.pins.shares_inode(inode)
    assert volume.pins.known_blob(inode) is None


def test_a_write_before_the_hash_leaves_a_copy_that_is_adopted(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    assert volume.pins.pin(str(volume.path("weights")), inode)
    volume.write("weights", b"4567")
    hashed, blob = volume.hash(inode)
    assert volume.pins.adopt(inode, hashed, blob)
    assert blob == hash_bytes(b"0123")
    assert volume.kept(blob) == b"0123"
    assert volume.pins.known_blob(inode) is None
    volume.write("weights", b"89ab")
    assert volume.kept(blob) == b"0123"


def test_what_was_hashed_while_it_was_written_is_not_adopted(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.pin(str(volume.path("weights")), inode)
    hashed, blob = volume.hash(inode)
    volume.write("weights", b"4567")
    assert not volume.pins.adopt(inode, hashed, blob)
    assert not os.path.exists(volume.layout.blob(blob))
    hashed, blob = volume.hash(inode)
    assert volume.pins.adopt(inode, hashed, blob)
    assert volume.kept(blob) == b"0123"


def test_pinning_again_says_that_it_is_kept_and_a_copy_gives_way_to_what_the_file_is(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    path = str(volume.path("weights"))
    assert volume.pins.pin(path, inode)
    assert not volume.pins.pin(path, inode)
    volume.write("weights", b"4567")
    assert volume.pins.pin(path, inode)
    assert volume.hash(inode)[1] == hash_bytes(b"4567")


def test_a_name_that_another_file_has_taken_is_not_pinned(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.create("weights.tmp", b"4567")
    volume.path("weights.tmp").rename(volume.path("weights"))
    with pytest.raises(FileNotFoundError, match="another file"):
        volume.pins.pin(str(volume.path("weights")), inode)
    assert os.listdir(volume.volume.pins) == []
    assert volume.path("weights").stat().st_nlink == 1
    with pytest.raises(FileNotFoundError):
        volume.pins.pin(str(volume.path("never was")), inode)


def test_a_pin_that_came_too_late_is_taken_back_but_never_one_that_a_write_needs(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.pin(str(volume.path("weights")), inode)
    volume.pins.unpin(inode)
    volume.pins.unpin(inode)
    assert volume.path("weights").stat().st_nlink == 1
    blob = volume.seal("weights")
    volume.pins.unpin(inode)
    volume.pins.forget(inode)
    volume.write("weights", b"4567")
    assert volume.kept(blob) == b"0123"


def test_pins_of_files_that_are_gone_are_forgotten_once_nothing_depends_on_them(volume: Volume) -> None:
    shared, equal = volume.create("a", b"same"), volume.create("b", b"same")
    blob = volume.seal("a")
    volume.seal("b")
    for name in ("a", "b"):
        volume.path(name).unlink()
    volume.pins.forget(shared)
    volume.pins.forget(equal)
    assert os.listdir(volume.volume.pins) == [str(shared)]
    os.unlink(volume.layout.blob(blob))
    volume.pins.forget(shared)
    assert os.listdir(volume.volume.pins) == []


def test_a_deleted_file_that_is_open_still_can_be_opened_for_writing_safely(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    fd = os.open(volume.path("weights"), os.O_RDONLY)
    try:
        volume.path("weights").unlink()
        volume.pins.forget(inode)
        volume.pins.detach(inode)
        Path(f"/proc/self/fd/{fd}").write_bytes(b"4567")
    finally:
        os.close(fd)
    assert volume.kept(blob) == b"0123"


def test_a_collected_blob_leaves_a_file_that_can_be_written_and_sealed_again(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    os.unlink(volume.layout.blob(blob))
    assert volume.pins.known_blob(inode) is None
    assert not volume.pins.shares_inode(inode)
    assert volume.seal("weights") == blob
    os.unlink(volume.layout.blob(blob))
    volume.write("weights", b"4567")
    assert not os.path.exists(volume.layout.blob(blob))
    assert volume.kept(volume.seal("weights")) == b"4567"


def test_a_blob_of_the_wrong_size_gives_way_to_the_live_content(volume: Volume) -> None:
    blob = hash_bytes(b"0123")
    Path(volume.layout.blob(blob)).write_bytes(b"01")
    volume.create("weights", b"0123")
    assert volume.seal("weights") == blob
    assert volume.kept(blob) == b"0123"


def test_a_hard_link_is_the_same_file(volume: Volume) -> None:
    volume.create("a", b"0123")
    os.link(volume.path("a"), volume.path("b"))
    blob = volume.seal("a")
    assert volume.seal("b") == blob
    assert volume.path("b").stat().st_nlink == 3
    volume.write("b", b"4567")
    assert volume.path("a").read_bytes() == b"4567"
    assert volume.path("a").stat().st_nlink == 2
    assert volume.kept(blob) == b"0123"


def test_a_detach_without_room_changes_nothing(volume: Volume) -> None:
    inode = volume.create("weights", b"")
    os.truncate(volume.path("weights"), 1 << 50)  # sparse: its copy does not fit anywhere
    assert volume.pins.pin(str(volume.path("weights")), inode)
    with pytest.raises(OSError, match="No space left"):
        volume.pins.detach(inode)
    assert os.listdir(volume.volume.pins) == [str(inode)]
    assert volume.pins.shares_inode(inode)
    os.truncate(volume.path("weights"), 0)


def test_a_daemon_can_detach_while_a_new_worker_clears_up(volume: Volume) -> None:
    content = os.urandom(16 << 20)
    inode = volume.create("weights", content)
    blob = volume.seal("weights")
    ended = threading.Event()

    def clear() -> None:
        while not ended.is_set():
            for name in os.listdir(volume.layout.incoming):
                os.unlink(os.path.join(volume.layout.incoming, name))

    worker = threading.Thread(target=clear)
    worker.start()
    try:
        volume.pins.detach(inode)
    finally:
        ended.set()
        worker.join()
    volume.path("weights").write_bytes(b"4567")
    assert hash_bytes(volume.kept(blob)) == blob


def test_a_daemon_and_a_worker_can_race_for_the_same_files(volume: Volume) -> None:
    """A daemon writes to files as fast as it can while a worker seals them; what was adopted stays right."""
    names = [f"file{number}" for number in range(4)]
    for name in names:
        volume.create(name, b"start" + name.encode())
    # Stands for the worker's `version` calls: no pin is made of a file that has a writer.
    writing = threading.Lock()
    enough = threading.Event()

    def write() -> None:
        for turn in itertools.count():
            for name in names:
                with writing:
                    volume.write(name, b"%d of " % turn + name.encode())
            if enough.is_set():
                return

    def seal() -> set[Blob]:
        kept: set[Blob] = set()
        while len(kept) < 30 and not written.done():
            for name in names:
                inode = volume.inode(name)
                with writing:
                    volume.pins.pin(str(volume.path(name)), inode)
                if volume.pins.known_blob(inode) is None:
                    kept |= _hash_and_adopt(volume, inode)
        return kept

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            kept = seal()
        finally:
            enough.set()
        written.result()
    assert len(kept) >= 30
    for blob in kept:
        assert hash_bytes(volume.kept(blob)) == blob
    volume.check_every_blob_is_safe()


def _hash_and_adopt(volume: Volume, inode: int) -> set[Blob]:
    try:
        hashed, blob = volume.hash(inode)
    except FileNotFoundError:
        return set()
    return {blob} if volume.pins.adopt(inode, hashed, blob) else set()


Step = Callable[[Volume], object]


def _arrange_nothing(volume: Volume) -> None:
    volume.create("weights", b"0123")


def _arrange_pinned(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.pin(str(volume.path("weights")), inode)


def _arrange_sealed(volume: Volume) -> None:
    volume.create("weights", b"0123")
    volume.seal("weights")


def _arrange_equal(volume: Volume) -> None:
    volume.create("other", b"0123")
    volume.seal("other")
    _arrange_pinned(volume)


def _arrange_equal_sealed(volume: Volume) -> None:
    volume.create("weights", b"0123")
    volume.seal("weights")
    volume.create("other", b"0123")
    volume.seal("other")


def _arrange_detached(volume: Volume) -> None:
    _arrange_pinned(volume)
    volume.write("weights", b"4567")


def _arrange_collected(volume: Volume) -> None:
    _arrange_sealed(volume)
    os.unlink(volume.layout.blob(hash_bytes(b"0123")))


def _pin(volume: Volume) -> None:
    volume.pins.pin(str(volume.path("weights")), volume.inode("weights"))


def _adopt(volume: Volume) -> None:
    inode = volume.inode("weights")
    assert volume.pins.adopt(inode, *volume.hash(inode))


def _detach(volume: Volume) -> None:
    volume.pins.detach(volume.inode("weights"))


def _recover(volume: Volume) -> None:
    volume.pins.recover()


@pytest.mark.parametrize(
    ("arrange", "step"),
    [
        (_arrange_nothing, _pin),
        (_arrange_collected, _pin),
        (_arrange_detached, _pin),
        (_arrange_pinned, _adopt),
        (_arrange_equal, _adopt),
        (_arrange_detached, _adopt),
        (_arrange_pinned, _detach),
        (_arrange_sealed, _detach),
        (_arrange_equal_sealed, _detach),
        (_arrange_collected, _detach),
        (_arrange_detached, _recover),
        (_arrange_pinned, _recover),
    ],
    ids=lambda function: function.__name__.removeprefix("_arrange").lstrip("_"),
)
@pytest.mark.parametrize("worker_follows", [True, False])
def test_a_process_may_die_at_any_line(layout: Layout, arrange: Step, step: Step, worker_follows: bool) -> None:
    for lines, volume in enumerate(_fresh_volumes(layout)):
        arrange(volume)
        before = volume.path("weights").read_bytes()
        ended = survives(pins_module, lines, lambda volume=volume: step(volume))  # type: ignore[misc]
        volume.check_every_blob_is_safe()
        assert volume.path("weights").read_bytes() == before
        if worker_follows:
            volume.pins.recover()
            assert volume.seal("weights") == hash_bytes(before)
            volume.check_every_blob_is_safe()
        kept = {path: path.read_bytes() for path in Path(layout.blobs).glob("*/*")}
        volume.write("weights", b"written after the crash")
        assert {path: path.read_bytes() for path in kept} == kept
        volume.check_every_blob_is_safe()
        assert volume.kept(volume.seal("weights")) == b"written after the crash"
        if ended:
            return


def _fresh_volumes(layout: Layout) -> Iterator[Volume]:
    for number in range(200):
        root = Path(layout.root) / str(number)
        fresh = Layout(str(root))
        for directory in (fresh.blobs, fresh.incoming):
            os.makedirs(directory)
        yield Volume(fresh)
    pytest.fail("the step never ends")
