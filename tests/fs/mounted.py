"""A volume and the real daemon that serves it, as a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_tier.blobs import Blob
from fuse_tier.fs.spec import MountSpec
from fuse_tier.hashing import hash_descriptor
from fuse_tier.identity import Identity
from fuse_tier.mount.table import Mount, is_inside, read_mounts
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins

IDENTITY = Identity("default", "job", "rank-0")
PATIENCE_SECONDS = 20.0


def eventually(fact: Callable[[], bool], what: str) -> None:
    """Waits until something is so. For facts of other processes, which nothing announces."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < give_up, f"not within {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.005)


def mounts_below(directory: Path) -> list[Mount]:
    """What is mounted at a directory or below it, one over another included; other tests' mounts come and go."""
    return [mount for mount in read_mounts() if is_inside(mount.path, str(directory))]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a volume stands, and where it is to be mounted."""

    base: Path
    log: Path
    mountpoint: Path

    @property
    def layout(self) -> Layout:
        return Layout(str(self.base / "ram"))

    @property
    def volume(self) -> VolumeLayout:
        return self.layout.volume(IDENTITY)

    @property
    def tree(self) -> Path:
        return Path(self.volume.tree)

    @property
    def socket(self) -> str:
        return str(self.base / "node.sock.volumes")

    @property
    def keeper_socket(self) -> str:
        return str(self.base / "keeper.sock")

    @property
    def pins(self) -> Pins:
        return Pins(self.layout, self.volume)

    def prepare(self) -> None:
        """Makes an empty volume."""
        for directory in (self.tree, self.layout.blobs, self.layout.incoming, self.volume.pins, self.volume.remote):
            os.makedirs(directory)
        self.mountpoint.mkdir()

    def seal(self, name: str | bytes) -> Blob | None:
        """Does what a worker does with a finished file: pins, hashes and adopts it. None: it was known already."""
        path = os.path.join(os.fsencode(self.tree), os.fsencode(name))
        inode = os.lstat(path).st_ino
        if not self.pins.pin(os.fsdecode(path), inode):
            return None
        fd = os.open(self.pins.path(inode), os.O_RDONLY)
        try:
            hashed, blob = os.fstat(fd), hash_descriptor(fd)
        finally:
            os.close(fd)
        assert self.pins.adopt(inode, hashed, blob)
        return blob

    def blob_content(self, blob: Blob) -> bytes:
        return Path(self.layout.blob(blob)).read_bytes()


class Mounted:
    """A running keeper with its daemon."""

    def __init__(self, place: Place, *, program: Sequence[str] = ("fuse_tier.fs",), **parameters: Any) -> None:
        """``program`` is the module that is run as the keeper, with its arguments."""
        self.place = place
        self._program = program
        self.path = place.mountpoint
        self._spec = {
            "ram_root": place.layout.root,
            "identity": str(IDENTITY),
            "mountpoint": str(place.mountpoint),
            "worker_socket": place.socket,
            "keeper_socket": place.keeper_socket,
        } | parameters
        self.process, self.said = self._start(self._spec)

    def _start(self, spec: dict[str, Any]) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        MountSpec.parse(json.dumps(spec))
        with self.place.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(spec).encode())
        process.stdin.close()
        readable, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
        assert readable, "the keeper said nothing"
        said = json.loads(process.stdout.readline() or b"{}")
        process.stdout.close()
        return process, said

    def upgrade(self) -> None:
        """Another keeper takes over."""
        old = self.process
        successor, said = self._start(self._spec | {"take_over": self.place.keeper_socket})
        assert said.get("serving"), said
        self.process = successor
        assert old.wait(PATIENCE_SECONDS) == 0

    def succeed(self) -> None:
        """A keeper takes over from whoever stands in for one that was killed."""
        self.process, said = self._start(self._spec | {"take_over": self._spec["keeper_socket"]})
        assert said.get("serving"), said

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def daemon(self) -> int:
        """The daemon that its keeper has at the moment; 0 between two."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def kill_daemon(self) -> None:
        """Returns when another daemon is there, which may not serve yet."""
        eventually(lambda: self.daemon != 0, "a daemon")
        killed = self.daemon
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: self.daemon not in (0, killed), "another daemon")

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_SECONDS)

    def unmount(self) -> None:
        """What a user does."""
        subprocess.run(["fusermount3", "-u", str(self.path)], check=True, capture_output=True)

    def destroy(self) -> None:
        """Leaves no process and no mount, whatever the test did."""
        if self.process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGINT):  # two of the same may arrive as one
                self.process.send_signal(number)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE_SECONDS)
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False, capture_output=True)
