"""What the repository says of itself is so: paths in the documents, targets, layers, the version."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import fuse_tier

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_PACKAGE_PATH = re.compile(
    r"`((?:fuse_tier|tests|docs|tools|cli|node|fs|ram|tiers|wire|replicate|coordinate|mount)/[\w/.]*?)`"
)
_LINK = re.compile(r"\]\(([^)#:]+)\)")
_MAKE = re.compile(r"(?:`|^)make ([a-z-]+)", re.MULTILINE)


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_relative)
def test_every_path_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    named = _PACKAGE_PATH.findall(text)
    missing = [path for path in named if not ((ROOT / path).exists() or (ROOT / "fuse_tier" / path).exists())]
    linked = [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    assert missing + linked == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_relative)
def test_every_make_target_that_a_document_names_is_there(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(_MAKE.findall(document.read_text())) <= targets


@pytest.mark.network
def test_make_without_a_target_lists_them_all() -> None:
    listed = subprocess.run(["make", "--directory", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-fast", "lint", "bench", "proto", "clean"):
        assert f"make {target} " in listed


def test_the_version_stands_in_one_place_only_or_is_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fuse_tier.__version__ == project["version"]


def test_every_dependency_has_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [entry for group in project["dependency-groups"].values() for entry in group if isinstance(entry, str)]
    for requirement in [*project["project"]["dependencies"], *groups]:
        assert ">=" in requirement, requirement
        assert "<" in requirement or requirement.startswith("types-"), requirement


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        _relative(path)
        for package in ("fuse_tier", "csi", "controller")
        for path in (ROOT / package).rglob("*.py")
        if "_pb2" not in path.name and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []
