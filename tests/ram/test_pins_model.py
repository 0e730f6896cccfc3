"""A volume's pins held against a model: whatever a daemon and a worker do in whatever order, dying included,
content that a snapshot names is what it was when it was sealed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from threading import Event

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest, encode
from fuse_tier.ram import pins as pins_module
from fuse_tier.ram import upkeep
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.listing import RamListing
from tests.harness.examples import examples
from tests.harness.snapshots import LLAMA
from tests.ram.crashing import survives
from tests.ram.pinned import Volume

NAMES = st.sampled_from(["a", "b", "c"])
CONTENTS = st.sampled_from([b"", b"0", b"1", b"22", b"33"])
LINES = st.integers(0, 25)


class PinsModel(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fuse-tier-model-", dir="/dev/shm"))
        self.layout = Layout(str(self.root))
        for directory in (self.layout.blobs, self.layout.incoming, self.layout.manifests):
            os.makedirs(directory)
        self.volume = Volume(self.layout)
        self.listing = RamListing(self.layout, "ram")
        self.live: dict[int, bytes] = {}  # by inode: what a job last wrote
        self.names: dict[str, int] = {}
        self.hashed: dict[int, tuple[os.stat_result, Blob]] = {}  # by a worker that has not adopted yet
        self.named: dict[int, dict[Blob, bytes]] = {}  # by number: what a listed snapshot names
        self.last_number = 0
        self.writers: dict[int, int] = {}  # by inode: a descriptor that a job has open for writing
        self.write("a", b"0")
        self.write("b", b"22")

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for fd in self.writers.values():
                os.close(fd)
            shutil.rmtree(self.root)

    @rule(name=NAMES, content=CONTENTS)
    def write(self, name: str, content: bytes) -> None:
        if name in self.names:
            self.volume.write(name, content)
        else:
            self.names[name] = self.volume.create(name, content)
        self.live[self.names[name]] = content

    @rule(name=NAMES)
    def open_for_writing(self, name: str) -> None:
        if name in self.names and self.names[name] not in self.writers:
            self.volume.pins.detach(self.names[name])
            self.writers[self.names[name]] = os.open(self.volume.path(name), os.O_WRONLY)

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), content=CONTENTS, closes=st.booleans())
    def write_what_is_open(self, data: st.DataObject, content: bytes, closes: bool) -> None:
        """The inode may have been pinned meanwhile by a worker that did not know of the writer yet."""
        inode = data.draw(st.sampled_from(sorted(self.writers)))
        os.ftruncate(self.writers[inode], 0)
        os.pwrite(self.writers[inode], content, 0)
        self.live[inode] = content
        if closes:
            os.close(self.writers.pop(inode))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.names:
            self.volume.path(name).unlink()
            del self.names[name]

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        if old in self.names and old != new and self.names[old] != self.names.get(new):
            self.volume.path(old).rename(self.volume.path(new))
            self.names[new] = self.names.pop(old)

    @rule(old=NAMES, new=NAMES)
    def link(self, old: str, new: str) -> None:
        if old in self.names and new not in self.names:
            os.link(self.volume.path(old), self.volume.path(new))
            self.names[new] = self.names[old]

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        if name in self.names:
            self.hashed.pop(self.names[name], None)  # a worker takes one snapshot at a time
            self.volume.pins.pin(str(self.volume.path(name)), self.names[name])

    @rule(name=NAMES)
    def hash(self, name: str) -> None:
        inode = self.names.get(name)
        if inode is None or inode in self.writers:
            return
        if not os.path.islink(pin := self.volume.pins.path(inode)) and os.path.exists(pin):
            self.hashed[inode] = self.volume.hash(inode)

    @rule(name=NAMES)
    def adopt(self, name: str) -> None:
        inode = self.names.get(name)
        if inode in self.hashed:
            assert inode is not None
            self.volume.pins.adopt(inode, *self.hashed.pop(inode))

    @rule(name=NAMES)
    def seal(self, name: str) -> None:
        if name in self.names and self.names[name] not in self.writers:
            inode = self.names[name]
            self.hashed.pop(inode, None)
            assert self.volume.seal(name) == hash_bytes(self.live[inode])

    @rule(name=NAMES)
    def unpin(self, name: str) -> None:
        if name in self.names:
            self.hashed.pop(self.names[name], None)
            self.volume.pins.unpin(self.names[name])

    @rule()
    def forget_vanished(self) -> None:
        for inode in [int(name) for name in os.listdir(self.volume.volume.pins) if name.isdigit()]:
            if inode not in self.names.values():
                self.volume.pins.forget(inode)

    @rule()
    def snapshot(self) -> None:
        """Lists what is known of the live files, as a worker does when all of them are sealed."""
        known = {
            name: self.volume.pins.known_blob(inode)
            for name, inode in sorted(self.names.items())
            if inode not in self.writers
        }
        for name, blob in known.items():
            assert blob is None or blob == hash_bytes(self.live[self.names[name]])
        self.last_number += 1
        files = [Entry(name.encode(), Kind.FILE, blob=blob) for name, blob in known.items() if blob is not None]
        manifest = Manifest(
            SnapshotId(LLAMA, self.last_number), Lineage("llama"), "a", 0, (Entry(b"", Kind.DIRECTORY), *files)
        )
        self.listing.publish(manifest.id, encode(manifest))
        self.named[self.last_number] = {
            blob: self.live[self.names[name]] for name, blob in known.items() if blob is not None
        }

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.named)))
        self.listing.remove(SnapshotId(LLAMA, number))
        del self.named[number]

    @rule()
    def collect(self) -> None:
        upkeep.collect(self.layout, self.listing, 0, Event())
        needed = {blob.name for blobs in self.named.values() for blob in blobs}
        assert {path.name for path in Path(self.layout.blobs).glob("*/*")} == needed

    @rule(name=NAMES, content=CONTENTS, lines=LINES)
    def daemon_dies_in_a_detach(self, name: str, content: bytes, lines: int) -> None:
        if name not in self.names:
            return
        inode = self.names[name]
        survives(pins_module, lines, lambda: self.volume.pins.detach(inode))
        self.write(name, content)

    @rule(name=NAMES, lines=LINES)
    def worker_dies_in_an_adopt(self, name: str, lines: int) -> None:
        inode = self.names.get(name)
        if inode in self.hashed:
            assert inode is not None
            hashed, blob = self.hashed[inode]
            survives(pins_module, lines, lambda: self.volume.pins.adopt(inode, hashed, blob))
            self._worker_starts()

    @rule(name=NAMES, lines=LINES)
    def worker_dies_in_a_pin(self, name: str, lines: int) -> None:
        if name in self.names:
            path, inode = str(self.volume.path(name)), self.names[name]
            survives(pins_module, lines, lambda: self.volume.pins.pin(path, inode))
            self._worker_starts()

    def _worker_starts(self) -> None:
        self.hashed.clear()
        for name in os.listdir(self.layout.incoming):
            os.unlink(os.path.join(self.layout.incoming, name))
        self.volume.pins.recover()

    @invariant()
    def what_snapshots_name_is_there_as_it_was(self) -> None:
        for blobs in getattr(self, "named", {}).values():
            for blob, content in blobs.items():
                assert self.volume.kept(blob) == content

    @invariant()
    def live_files_are_what_the_job_wrote(self) -> None:
        for name, inode in getattr(self, "names", {}).items():
            assert self.volume.path(name).read_bytes() == self.live[inode]
            assert self.volume.inode(name) == inode

    @invariant()
    def a_job_sees_the_links_that_it_made(self) -> None:
        for name, inode in getattr(self, "names", {}).items():
            links = self.volume.path(name).stat().st_nlink - self.volume.pins.shares_inode(inode)
            assert links == sum(1 for other in self.names.values() if other == inode)

    @invariant()
    def every_blob_is_safe(self) -> None:
        if hasattr(self, "volume"):
            self.volume.check_every_blob_is_safe()


TestPinsModel = PinsModel.TestCase
TestPinsModel.settings = settings(max_examples=examples(80), stateful_step_count=40, deadline=None)
