"""Whom the kernel spares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fuse_tier.node.priority import COPYING, KEEPING, protect

_SET = """
import sys
from fuse_tier.node.priority import protect
protect(int(sys.argv[1]))
print(open("/proc/self/oom_score_adj").read())
"""


def test_a_process_says_how_much_it_is_worth_as_far_as_it_may() -> None:
    found = {}
    for wanted in (500, KEEPING):  # more likely than others anybody may be; less, only with CAP_SYS_RESOURCE
        done = subprocess.run([sys.executable, "-c", _SET, str(wanted)], capture_output=True, text=True, check=True)
        found[wanted] = int(done.stdout)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert found[500] == 500
    assert found[KEEPING] in (KEEPING, own)


def test_the_value_of_a_process_that_has_ended_is_nobodys_concern() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    protect(500, process.pid)


def test_who_keeps_mounts_is_spared_longest() -> None:
    assert -1000 < KEEPING < COPYING < 0
