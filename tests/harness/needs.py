"""What a test may need of the machine, and whether it is here.

A test marked ``fuse``, ``root`` or ``namespaces`` is skipped where that is lacking, with the reason; where
FUSE_TIER_REQUIRE names the need, it fails instead: a suite that silently tests nothing must not look green.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from controller.local.programs import TOOLS, lacking
from csi.local.pod import control_groups

REQUIRE = "FUSE_TIER_REQUIRE"
NEEDS = (
    "root", "fuse", "namespaces", "csi_sanity", "kube", "jobset", "promtool", "images", "cgroups", "sidecars",
    "torch", "trainers", "faketime",
)  # fmt: skip
SIDECARS = ("csi-node-driver-registrar", "livenessprobe")
JOBSET_CRD = TOOLS / "jobset/crd.yaml"
PROMTOOL = TOOLS / "bin/promtool"


@cache
def missing(need: str) -> str | None:
    """Why ``need`` (one of ``NEEDS``) is not met on this machine, or None if it is."""
    looks = {
        "fuse": _missing_fuse,
        "root": _missing_root,
        "namespaces": _missing_namespaces,
        "csi_sanity": _missing_csi_sanity,
        "kube": _missing_kube,
        "jobset": _missing_jobset,
        "promtool": _missing_promtool,
        "images": _missing_images,
        "cgroups": _missing_cgroups,
        "sidecars": _missing_sidecars,
        "torch": _missing_torch,
        "trainers": _missing_trainers,
        "faketime": _missing_faketime,
    }
    return looks[need]()


def required(environment: Mapping[str, str]) -> frozenset[str]:
    """The needs that FUSE_TIER_REQUIRE names, separated by commas or blanks."""
    return frozenset(environment.get(REQUIRE, "").replace("-", "_").replace(",", " ").split())


def _missing_root() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    with tempfile.TemporaryDirectory(prefix="fuse-tier-probe-") as directory:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "probe", directory], capture_output=True, check=False)
        if mounted.returncode:
            return "needs the right to mount (CAP_SYS_ADMIN)"
        subprocess.run(["umount", directory], check=True)
    return None


def _missing_namespaces() -> str | None:
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian's package {package})"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"fuse-tier-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"needs network namespaces: {made.stderr.strip()}"
    try:
        wire = ["ip", "-n", name, "link", "add", "wire0", "type", "veth", "peer", "name", "wire1"]
        wired = subprocess.run(wire, capture_output=True, text=True, check=False)
        return f"needs veth pairs: {wired.stderr.strip()}" if wired.returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def _missing_cgroups() -> str | None:
    groups = control_groups()
    if groups is None:
        return "needs unified control groups (cgroup2)"
    probe = groups / f"fuse-tier-probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError as error:
        return f"needs to make control groups: {error.strerror}"
    try:
        if not (probe / "cgroup.kill").exists():
            return "needs cgroup.kill (Linux 5.14)"
        # With nsdelegate only who may enter the machine's own namespace leaves its group.
        leave = f'echo $$ >{probe}/cgroup.procs && exec unshare --cgroup sh -c "echo \\$\\$ >{groups}/cgroup.procs"'
        left = subprocess.run(["sh", "-c", leave], capture_output=True, text=True, check=False)
        return f"needs to leave a control group: {left.stderr.strip()}" if left.returncode else None
    finally:
        probe.rmdir()


def program(name: str) -> str | None:
    """One that a test runs, if it is on this machine."""
    return shutil.which(name, path=f"{TOOLS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")


def _missing_csi_sanity() -> str | None:
    return None if program("csi-sanity") else "needs csi-sanity (make test-tools, where Go is)"


def _missing_torch() -> str | None:
    return None if find_spec("torch") else "needs PyTorch, which make test does not install: pip install torch"


def _missing_trainers() -> str | None:
    absent = [name for name in ("torch", "lightning", "transformers", "accelerate") if not find_spec(name)]
    return f"needs what make test does not install: pip install {' '.join(absent)}" if absent else None


def faketime() -> str | None:
    """The library that gives a process another clock, if it is here."""
    return next((str(place) for place in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


def _missing_faketime() -> str | None:
    return None if faketime() else "needs libfaketime (Debian's package libfaketime)"


def _missing_sidecars() -> str | None:
    lacking = [name for name in SIDECARS if program(name) is None]
    return f"needs {' and '.join(lacking)}, of the Kubernetes project, in .tools/bin or PATH" if lacking else None


def _missing_kube() -> str | None:
    return lacking() or None


def _missing_jobset() -> str | None:
    return None if JOBSET_CRD.exists() else "needs the schema of JobSets (make kube, where Go is)"


def _missing_promtool() -> str | None:
    return None if PROMTOOL.exists() else "needs promtool (make kube, where Go is)"


def _missing_images() -> str | None:
    if os.geteuid() != 0:
        return "needs root, for buildah's chroots"
    base = os.environ.get("BASE_IMAGE") or (TOOLS / "images" / "base.tar").exists()
    if not (base and shutil.which("buildah") and (TOOLS / "bin" / "docker-registry").exists()):
        return "needs buildah, a base and a registry (make images-check)"
    return None


def _missing_fuse() -> str | None:
    if not Path("/dev/fuse").exists():
        return "needs /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs to read and write /dev/fuse"
    if os.geteuid() == 0:
        return _missing_root()
    return None if shutil.which("fusermount3") else "needs fusermount3 (Debian's package fuse3)"
