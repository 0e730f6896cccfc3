"""A checkout of one's own for what ``make`` makes in one."""

from __future__ import annotations

import shutil
from pathlib import Path

from controller.local.programs import TOOLS

ROOT = TOOLS.parent
_MADE = ("controller-image.yaml", "csi-container-images.yaml", "run-make-multitier-images-first.yaml", "__pycache__")
# Everything that the manual's commands read.
_READ = (
    "Makefile", "pyproject.toml", ".dockerignore", "README.md", "LICENSE", "tools/images", "deploy", "crd",
    "examples", "fuse_tier", "csi", "controller",
)  # fmt: skip
RECORDER = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/tool.calls"
"""


def make_checkout(directory: Path) -> Path:
    """A copy of what is there to be built and applied; nothing in it was made by ``make``."""
    for name in _READ:
        source, target = ROOT / name, directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_MADE))
        else:
            shutil.copy(source, target)
    return directory


def give_recorder(checkout: Path) -> str:
    """In place of docker where images are not what is tested: builds nothing, and keeps what it is called with."""
    tool = checkout / "tool"
    tool.write_text(RECORDER)
    tool.chmod(0o755)
    return str(tool)
