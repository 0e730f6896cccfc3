"""The checkpoint that the demo writes as a job would, and the check that every byte of it is back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged
from fuse_tier.hashing import hash_bytes, hash_descriptor

SHARDS = 8
SHARD_BYTES = 32 << 20
_BLOCK_BYTES = 1 << 20
_STEP = "step_100"
_MARKER = "latest"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files by their path below the mount, and the links among them."""

    files: dict[str, bytes]
    links: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(content) for content in self.files.values())

    @property
    def blobs(self) -> dict[str, Blob]:
        """What every file must be."""
        return {path: hash_bytes(content) for path, content in self.files.items()}


def make_checkpoint() -> Checkpoint:
    """Eight shards of 32 MiB, small files as frameworks write them, an empty one, and a marker."""
    files = {f"{_STEP}/shard_{number}.bin": os.urandom(SHARD_BYTES) for number in range(SHARDS)}
    files |= {
        f"{_STEP}/metadata/param_{number}.json": json.dumps(
            {"name": f"layer_{number}", "shape": [1024, 4096]}
        ).encode()
        for number in range(40)
    }
    files[f"{_STEP}/COMMITTED"] = b""
    files[_MARKER] = f"{_STEP}\n".encode()
    return Checkpoint(files, {f"{_STEP}/first": "shard_0.bin"})


def _metadata(number: int) -> bytes:
    return json.dumps({"name": f"layer_{number}", "shape": [1024, 4096]}).encode()


def write_checkpoint(checkpoint: Checkpoint, mount: Path) -> None:
    """Writes it as a careful job does: below a temporary name, renamed when complete, the marker last."""
    temporary = f"{_STEP}.tmp"
    for path, content in checkpoint.files.items():
        if path == _MARKER:
            continue
        target = mount / path.replace(_STEP, temporary, 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, content)
    for path, target_path in checkpoint.links.items():
        (mount / path.replace(_STEP, temporary, 1)).symlink_to(target_path)
    (mount / temporary).rename(mount / _STEP)
    _write(mount / f"{_MARKER}.tmp", checkpoint.files[_MARKER])
    (mount / f"{_MARKER}.tmp").rename(mount / _MARKER)


def verify_checkpoint(checkpoint: Checkpoint, mount: Path) -> None:
    """Reads every byte. Raises Damaged, naming the first file that is not what was written."""
    expected = checkpoint.blobs
    found = {
        os.path.relpath(os.path.join(parent, name), mount): os.path.join(parent, name)
        for parent, _, names in os.walk(mount)
        for name in names
    }
    if found.keys() != expected.keys() | checkpoint.links.keys():
        raise Damaged(
            f"{mount} has other files: {sorted(found.keys() ^ (expected.keys() | checkpoint.links.keys()))}"
        )
    for path, target in checkpoint.links.items():
        if (got := os.readlink(found[path])) != target:
            raise Damaged(f"{found[path]} leads to {got!r}, not to {target!r}")
    for path, blob in expected.items():
        fd = os.open(found[path], os.O_RDONLY | os.O_NOFOLLOW)
        try:
            got_blob = hash_descriptor(fd)
        finally:
            os.close(fd)
        if got_blob != blob:
            raise Damaged(f"{found[path]} is {got_blob}, not {blob}")


def _write(path: Path, content: bytes) -> None:
    view = memoryview(content)
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(content), _BLOCK_BYTES):
            file.write(view[begin : begin + _BLOCK_BYTES])
