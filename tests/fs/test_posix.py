"""Small scenarios come out on the mount as they do on a plain tmpfs directory, in values, errno and attributes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.fs.callers import let_everybody_in
from tests.fs.mounted import Mounted
from tests.fs.oracle import Listing
from tests.fs.scenarios import SCENARIOS, run

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def reference(memory_path: Path) -> Iterator[Path]:
    path = memory_path / "reference"
    path.mkdir()
    before = os.umask(0o022)
    try:
        yield path
    finally:
        os.umask(before)


@pytest.mark.parametrize("theme", SCENARIOS)
def test_scenarios_come_out_as_on_a_tmpfs(mounted: Mounted, reference: Path, theme: str) -> None:
    let_everybody_in(mounted.path)
    let_everybody_in(reference)
    differences = []
    for scenario in SCENARIOS[theme]:
        ours, theirs = (run(scenario, root / scenario.__name__) for root in (mounted.path, reference))
        differences += [
            f"{scenario.__name__}[{step}]: {mine!r:.600}, on a tmpfs {other!r:.600}"
            for step, (mine, other) in enumerate(zip_longest(ours, theirs, fillvalue="nothing"))
            if mine != other
        ]
    if differences:
        shown = "\n".join(differences[:40])
        pytest.fail(f"{len(differences)} outcomes differ:\n{shown}", pytrace=False)


def test_a_directory_of_100_000_entries_is_listed_whole_while_it_changes(mounted: Mounted) -> None:
    lasting = {b"lasting-%d" % number for number in range(100_000)}
    # Made behind the mount: that takes a second.
    directory = os.open(mounted.place.tree, os.O_RDONLY)
    for name in lasting:
        os.mknod(name, dir_fd=directory)
    os.close(directory)
    listing = Listing(os.fsencode(mounted.path))
    seen = []
    for position, (_, name) in enumerate(iter(listing.next, None)):
        seen.append(name)
        if position % 1000 == 0:
            (mounted.path / f"passing-{position}").touch()
            (mounted.path / f"passing-{position - 5000}").unlink(missing_ok=True)
    listing.close()
    assert len(seen) == len(set(seen))
    assert lasting <= set(seen)


def test_inode_numbers_stay_when_files_are_renamed_linked_and_forgotten(mounted: Mounted) -> None:
    (mounted.path / "directory").mkdir()
    (mounted.path / "file").write_bytes(b"content")
    numbers = [(mounted.path / name).stat().st_ino for name in ("directory", "file")]
    (mounted.path / "file").rename(mounted.path / "directory" / "file")
    (mounted.path / "directory").rename(mounted.path / "renamed")
    (mounted.path / "linked").hardlink_to(mounted.path / "renamed" / "file")
    forget_what_nobody_uses()
    assert [(mounted.path / name).stat().st_ino for name in ("renamed", "renamed/file")] == numbers
    assert (mounted.path / "linked").stat().st_ino == numbers[1]
    assert [entry.inode() for entry in os.scandir(mounted.path / "renamed")] == [numbers[1]]


def test_requests_of_a_process_that_is_killed_are_abandoned_and_nothing_stays_open(mounted: Mounted) -> None:
    code = (
        "import os, sys\n"
        "files = [os.open(f'{sys.argv[1]}/{number}', os.O_CREAT | os.O_RDWR) for number in range(20)]\n"
        "print('going', flush=True)\n"
        "while True:\n"
        "    for file in files: os.pwrite(file, bytes(1 << 20), 0); os.fsync(file)\n"
    )
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code, str(mounted.path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout and writer.stdout.readline() == b"going\n"
            writer.kill()
    (mounted.path / "after").write_bytes(b"still served")
    assert (mounted.path / "after").read_bytes() == b"still served"
    mounted.unmount()  # EBUSY if a file were still open
    assert mounted.wait() == 0


def forget_what_nobody_uses() -> None:
    """Has the kernel drop names and inodes from its caches."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")
