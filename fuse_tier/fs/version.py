"""Which code a keeper and its daemons run: what an upgrade compares."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

import xxhash

import fuse_tier

_OTHERS: Final = frozenset({"bench", "cli", "coordinate", "demo", "localcluster", "node", "replicate", "tiers"})


@cache
def code_version() -> str:
    """The package's version and a digest of the source files that a keeper may load, as of the first call."""
    digest = xxhash.xxh3_64()
    package = Path(fuse_tier.__file__).parent
    for directory, below, files in os.walk(package):
        if Path(directory) == package:
            below[:] = set(below) - _OTHERS
        below.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(directory, name)
                digest.update(f"{path.relative_to(package)}\0".encode())
                digest.update(path.read_bytes())
    return f"{fuse_tier.__version__}+{digest.hexdigest()}"
