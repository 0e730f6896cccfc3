from __future__ import annotations

import mmap
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_tier.ram.hugepages import bring_together, huge_page_bytes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not huge_page_bytes(), reason="needs a kernel with huge pages"),
]

MIB = 1 << 20


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """One of its own, as a RAM tier is mounted."""
    path = tmp_path / "memory"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "huge=within_size,size=128M", secrets.token_hex(4), str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs a tmpfs with huge pages")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def grown(path: Path, size: int) -> Path:
    """A file that grew page by page."""
    with path.open("wb", buffering=0) as file:
        for number in range(size // 4096):
            file.write(number.to_bytes(4, "little") * 1024)
    return path


def in_huge_pages(path: Path) -> int:
    """How many bytes of a file the processor maps by huge pages once all of it was read (proc(5), smaps)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped[:]
        _, _, ours = Path("/proc/self/smaps").read_text().partition(f" {path}\n")
    (line,) = (line for line in ours.split("VmFlags")[0].splitlines() if line.startswith("ShmemPmdMapped:"))
    return int(line.split()[1]) * 1024


def are_to_be_had(directory: Path) -> bool:
    """Whether this machine has huge pages left, for a file whose room is allocated at once."""
    with (directory / "probe").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
    return in_huge_pages(directory / "probe") == 8 * MIB


def test_a_file_that_grew_gets_them(tmpfs: Path) -> None:
    path = grown(tmpfs / "file", 9 * MIB)
    if not bring_together(str(path), 0, 32 * MIB) or not are_to_be_had(tmpfs):
        pytest.skip("needs Linux 6.1, and memory for huge pages")
    tries = 1  # the kernel leaves pages alone that somebody has in hand at that moment, itself included
    while in_huge_pages(path) < 8 * MIB and tries < 200:
        assert bring_together(str(path), 0, 32 * MIB)
        tries += 1
    assert in_huge_pages(path) == 8 * MIB


def test_content_stays_what_it_was_and_takes_no_more_room(tmpfs: Path) -> None:
    path = grown(tmpfs / "file", 9 * MIB)
    before, found = path.read_bytes(), path.stat()
    if not bring_together(str(path), 0, 32 * MIB):
        pytest.skip("needs Linux 6.1")
    assert path.read_bytes() == before
    after = path.stat()
    assert (after.st_size, after.st_blocks, after.st_mtime_ns) == (found.st_size, found.st_blocks, found.st_mtime_ns)


def test_holes_stay_holes_and_what_is_gone_is_nobodys_trouble(tmpfs: Path) -> None:
    path = tmpfs / "sparse"
    path.touch()
    os.truncate(path, 16 * MIB)
    with path.open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"content")
    blocks = path.stat().st_blocks
    assert bring_together(str(path), 0, 16 * MIB)
    assert path.stat().st_blocks == blocks
    assert bring_together(str(tmpfs / "missing"), 0, 16 * MIB)
    assert bring_together(str(path), 32 * MIB, 16 * MIB)


def test_who_reads_through_a_mapping_while_it_happens_reads_what_is_there(tmpfs: Path) -> None:
    path = grown(tmpfs / "file", 16 * MIB)
    before = path.read_bytes()
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as mapped:\n"
        "    print(mapped[5:9], flush=True)\n"
        "    sys.stdin.readline()\n"
        "    mapped[4 << 20 : (4 << 20) + 4] = b'DONE'\n"
        "    sys.stdout.buffer.write(mapped[:])\n"
    )
    with subprocess.Popen(
        ["python3", "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdin and reader.stdout and reader.stdout.readline()
        bring_together(str(path), 0, 16 * MIB)
        found, _ = reader.communicate(b"\n", 20)
    changed = before[: 4 * MIB] + b"DONE" + before[4 * MIB + 4 :]
    assert found == changed
    assert path.read_bytes() == changed
