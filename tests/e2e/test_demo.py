"""The demo itself, as root and as anybody: what it claims is so, and nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fuse_tier.localcluster.processes import mounts_below

pytestmark = [pytest.mark.fuse, pytest.mark.network]

_DEMO = [sys.executable, "-m", "fuse_tier.cli", "demo", "--json"]
_NOBODY = "65534"
# A mount namespace in which /dev/fuse is open to all, as distributions have it. The interpreter may stand where
# nobody else may read: hence the one capability, which gives no right to mount or to write.
_AS_NOBODY = f"""
set -e
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups \
  --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "$@"
"""


def _check(done: subprocess.CompletedProcess[bytes]) -> None:
    assert done.returncode == 0, done.stderr.decode()
    rows = json.loads(done.stdout)
    assert [row["step"] for row in rows if row["verified"]] == ["verify", "verify"]
    peer, bucket = (row["source"] for row in rows if row["step"] == "restore")
    assert peer.startswith("peer ")
    assert bucket.startswith("gs://")
    assert not _directory(done.stderr.decode()).exists()


def _directory(said: str) -> Path:
    found = re.search(r"/\S*fuse-tier-demo-\S+", said)
    assert found, said
    return Path(found[0])


async def test_the_demo_shows_what_it_claims() -> None:
    _check(await trio.run_process(_DEMO, capture_stdout=True, capture_stderr=True, check=False))


@pytest.mark.root
async def test_the_demo_runs_as_an_ordinary_user_and_says_so_in_a_line(tmp_path: Path) -> None:
    command = ["unshare", "--mount", "bash", "-c", _AS_NOBODY, "as-nobody", str(tmp_path), *_DEMO]
    environment = {**os.environ, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, env=environment, cwd="/"
    )
    _check(done)
    assert sum("as an ordinary user" in line for line in done.stderr.decode().splitlines()) == 1


def test_an_interrupted_demo_cleans_up() -> None:
    process = subprocess.Popen(_DEMO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = ""
    while "write" not in said:  # by then it has nodes and a mount
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait() == 1
    process.stderr.close()
    assert "SIGTERM" in rest
    directory = _directory(said)
    assert mounts_below(directory) == []
    assert not directory.exists()
