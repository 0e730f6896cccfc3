from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness.cgroups import memory_group

pytestmark = pytest.mark.root

MIB = 1 << 20
_LEFT = """
import sys
open(f"{sys.argv[1]}/cgroup.procs", "w").write("0")
from fuse_tier.ram.cgroups import memory_left
taken = b"x" * (32 << 20)
print(memory_left())
"""


def test_what_is_left_is_what_the_limit_has_beyond_what_is_used() -> None:
    with memory_group(128 * MIB) as group:
        done = subprocess.run([sys.executable, "-c", _LEFT, group], check=True, capture_output=True, text=True)
    assert 8 * MIB < int(done.stdout) < 96 * MIB
