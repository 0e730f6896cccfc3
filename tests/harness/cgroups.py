"""Memory cgroups of their own: who pays for which page."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[str]:
    """A cgroup with this limit, as a directory that processes are put into; skips where none can be made."""
    for parent, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = parent / f"fuse-tier-test-{secrets.token_hex(4)}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / limit).exists():
                continue
            (group / limit).write_text(str(limit_bytes))
            yield str(group)
            return
        finally:
            group.rmdir()
    pytest.skip("no memory cgroup can be made here")


def usage(group: str) -> int:
    """Bytes that count against it now."""
    for name in ("memory.current", "memory.usage_in_bytes"):
        path = Path(group, name)
        if path.exists():
            return int(path.read_text())
    raise AssertionError(f"{group} does not tell its usage")
