"""Public suites that judge a filesystem, and what each said of the one that a directory is on.

The programs are had from Debian and crates.io (``make test-tools``); nothing of theirs is in this repository. A
suite's result is an outcome for each of its cases, so that two filesystems can be compared case by case.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

TOOLS: Final = Path(__file__).parents[2] / ".tools"
_PATIENCE_SECONDS: Final = 300
_SAID: Final = 2_000  # characters kept of what a failed case said


class Verdict(Enum):
    """What became of a case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict, and for a failure what the suite said."""

    verdict: Verdict
    said: str = ""


Report = Mapping[str, Outcome]
"""By case."""


def counts(report: Report) -> str:
    """For people: '384 passed, 14 skipped'."""
    found = Counter(outcome.verdict for outcome in report.values())
    return ", ".join(f"{found[verdict]} {verdict.value}" for verdict in Verdict if found[verdict])


def regressions(ours: Report, reference: Report) -> dict[str, Outcome]:
    """What failed or was skipped on ours, or is missing there, though the reference passes it."""
    lacking = Outcome(Verdict.SKIPPED, "the suite did not get so far")
    return {
        case: found
        for case, outcome in reference.items()
        if outcome.verdict is Verdict.PASSED and (found := ours.get(case, lacking)).verdict is not Verdict.PASSED
    }


class Suite(ABC):
    """A public suite."""

    name: str
    program: str
    exceptions: Mapping[str, str] = {}
    """Cases that only a tmpfs passes, with the reason, which docs/posix.md has at length."""

    def find(self) -> str | None:
        """The program, if it is on this machine."""
        return shutil.which(self.program, path=f"{TOOLS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")

    @abstractmethod
    def run(self, directory: Path, scratch: Path) -> Report:
        """Judges the filesystem of an empty directory; ``scratch`` is another place, for what the suite needs."""

    def _call(self, *arguments: str | Path, cwd: Path | None = None) -> tuple[int, str]:
        program = self.find()
        assert program is not None
        try:
            done = subprocess.run(
                [program, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=_PATIENCE_SECONDS,
                check=False,
                cwd=cwd,
            )
        except subprocess.TimeoutExpired as late:
            return -1, f"not done within {_PATIENCE_SECONDS} s\n{(late.stdout or b'').decode(errors='replace')}"
        return done.returncode, done.stdout.decode(errors="replace")

    def _case(self, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
        """A call that is one case: it passes if the program says so."""
        status, said = self._call(*arguments, cwd=cwd)
        if status != 0:
            return Outcome(Verdict.FAILED, f"status {status}: {said[-_SAID:]}")
        return Outcome(Verdict.SKIPPED if "skipping stress test" in said else Verdict.PASSED)


class Pjdfstest(Suite):
    """https://crates.io/crates/pjdfstest: system calls, their errors, and which times they change."""

    name = program = "pjdfstest"
    _LINE = re.compile(r"^(?P<case>[\w:]+) +(?P<verdict>ok|FAILED|skipped)$\n?(?P<said>(?:^\t.*\n?)*)", re.MULTILINE)
    _VERDICTS: Final = {"ok": Verdict.PASSED, "FAILED": Verdict.FAILED, "skipped": Verdict.SKIPPED}
    _CONFIGURATION: Final = """
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
"""

    def run(self, directory: Path, scratch: Path) -> Report:
        configuration = scratch / "pjdfstest.toml"
        configuration.write_text(self._CONFIGURATION)
        _, said = self._call("-c", configuration, "-s", scratch, "-p", directory)
        return {
            found["case"]: Outcome(self._VERDICTS[found["verdict"]], found["said"].strip())
            for found in self._LINE.finditer(said)
        }


class Fsx(Suite):
    """https://crates.io/crates/fsx: random reads, writes, mappings and truncations of a file, each verified."""

    name = program = "fsx"
    _SEEDS: Final = range(1, 7)
    _OPERATIONS: Final = 3_000
    _WEIGHTS: Final[Mapping[str, int]] = {
        "close_open": 1, "invalidate": 1, "truncate": 5, "fsync": 1, "fdatasync": 1, "sendfile": 5,
        "posix_fadvise": 1, "copy_file_range": 3,
    }  # fmt: skip
    _ALLOCATING: Final[Mapping[str, int]] = {"posix_fallocate": 2, "punch_hole": 2}

    def run(self, directory: Path, scratch: Path) -> Report:
        report = {}
        for kind, weights in (("plain", self._WEIGHTS), ("allocating", {**self._WEIGHTS, **self._ALLOCATING})):
            configuration = scratch / f"fsx-{kind}.toml"
            lines = [f"{operation} = {weight}" for operation, weight in weights.items()]
            configuration.write_text("\n".join(["[weights]", *lines, ""]))
            for seed in self._SEEDS:
                file = directory / f"{kind}-{seed}"
                report[f"{kind}, seed {seed}"] = self._case(
                    "-f", configuration, "-N", str(self._OPERATIONS), "-S", str(seed), "-P", scratch, file
                )
        return report


class StressNg(Suite):
    """Debian's stress-ng: its stressors of filesystems, and of what is mapped, spliced and sent, with --verify."""

    name = program = "stress-ng"
    _SECONDS: Final = 1
    _STRESSORS: Final = (
        "access", "aio", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany",
        "dnotify", "dup", "fallocate", "fault", "fcntl", "fiemap", "file-ioctl", "filename", "flock", "fpunch",
        "fsize", "fstat", "getdent", "handle", "hdd", "inode-flags", "inotify", "io", "iomix", "lease", "link",
        "locka", "lockf", "lockofd", "mknod", "mmap", "mmapfork", "msync", "open", "readahead", "rename",
        "revio", "seek", "sendfile", "sockabuse", "splice", "symlink", "sync-file", "tee", "touch", "utime",
        "verity", "xattr",
    )  # fmt: skip
    _SIZES: Final = ("fallocate", "hdd", "iomix", "mmap", "readahead", "revio", "sync-file")

    def run(self, directory: Path, scratch: Path) -> Report:
        sizes = [argument for name in self._SIZES for argument in (f"--{name}-bytes", "32M")]
        report = {}
        for stressor in self._STRESSORS:
            place = directory / stressor
            place.mkdir()
            report[stressor] = self._case(
                "--temp-path", place, f"--{stressor}", "1", "--verify", "--mmap-file", "-t", str(self._SECONDS),
                "--seek-size", "32M", *sizes,
            )  # fmt: skip
            shutil.rmtree(place)
        return report


class Fio(Suite):
    """Debian's fio: writes whose checksums are verified, by every way of reading and writing."""

    name = program = "fio"
    _ENGINES: Final = ("psync", "vsync", "mmap", "libaio", "posixaio", "splice", "io_uring")
    _PATTERNS: Final = ("write", "randwrite", "randrw")

    def run(self, directory: Path, scratch: Path) -> Report:
        report = {}
        for engine in self._ENGINES:
            for pattern in self._PATTERNS:
                for direct in (0, 1):
                    case = f"{engine}-{pattern}-{'direct' if direct else 'buffered'}"
                    report[case] = self._case(
                        f"--directory={directory}", f"--name={case}", f"--ioengine={engine}", f"--rw={pattern}",
                        f"--direct={direct}", "--bsrange=4k-128k", "--size=8M", "--numjobs=2", "--verify=crc32c",
                        "--verify_fatal=1", "--do_verify=1", "--iodepth=4", "--unlink=1", "--minimal",
                        "--fallocate=none", cwd=scratch,
                    )  # fmt: skip
        return report


class Dbench(Suite):
    """Debian's dbench: the file operations of an office's file server, by several clients."""

    name = program = "dbench"
    _CLIENTS: Final = (1, 4)
    _SECONDS: Final = 5

    def run(self, directory: Path, scratch: Path) -> Report:
        return {
            f"{clients} clients": self._case("-D", directory, "-t", str(self._SECONDS), str(clients), cwd=scratch)
            for clients in self._CLIENTS
        }


SUITES: Final[tuple[type[Suite], ...]] = (Pjdfstest, Fsx, StressNg, Fio, Dbench)
