"""What is in the images: each program in its own, with no more rights than it needs, and all that it imports."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.harness.images import TARGETS, Built, in_container

pytestmark = [pytest.mark.images, pytest.mark.root, pytest.mark.network, pytest.mark.timeout(900)]

VERSION = re.search(r'^version = "(.*)"', Path("pyproject.toml").read_text(), re.MULTILINE)
MODULES = {
    "controller": ["controller.reconciling.server", "controller.watching"],
    "ranks": ["controller.ranks.server", "fuse_tier.coordinate", "controller.watching"],
    "csi": ["csi.serving", "csi.cleaning.waiting"],
    "fuse": ["fuse_tier.node.supervisor", "fuse_tier.node.refuge", "fuse_tier.fs.daemon"],
    "replication-worker": ["fuse_tier.node.worker", "fuse_tier.tiers.bucket", "fuse_tier.tiers.peer"],
}


def run(built: Built, target: str, *command: str) -> str:
    with built.container(built.name(target)) as name:
        found = subprocess.run(in_container(name, list(command)), capture_output=True, text=True, check=False)
    assert found.returncode == 0, (command, found.stdout, found.stderr)
    return found.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_program_runs_in_its_image_and_is_of_the_version_that_the_label_names(built: Built, target: str) -> None:
    settings = built.settings(target)
    assert VERSION is not None
    assert settings["Labels"]["org.opencontainers.image.version"] == VERSION[1]
    assert settings["Labels"]["org.opencontainers.image.title"] == f"fuse-tier-{target}"
    program, *arguments = settings["Entrypoint"]
    assert "Usage:" in run(built, target, program, *arguments, "--help")
    assert run(built, target, program, "--version").split()[-1] == VERSION[1]


@pytest.mark.parametrize("target", TARGETS)
def test_all_that_a_program_imports_is_in_its_image(built: Built, target: str) -> None:
    """Some of it is imported late: what stands in functions is asked for here."""
    run(built, target, "/opt/fuse-tier/bin/python", "-c", f"import {', '.join(MODULES[target])}")


def test_only_what_works_on_nodes_is_root(built: Built) -> None:
    users = {target: built.settings(target).get("User", "") for target in TARGETS}
    assert users == {"controller": "65532:65532", "ranks": "65532:65532"} | dict.fromkeys(TARGETS[2:], "")
    assert run(built, "controller", "id", "-u").strip() == "65532"


def test_the_commands_of_the_manifests_are_in_the_images_that_these_name(built: Built) -> None:
    directory = built.checkout / "deploy/multitier/controller"
    images = yaml.safe_load((directory / "csi-container-images.yaml").read_text())["data"]
    for key, command in (("csi", "fuse-tier-csi"), ("fuse", "fuse-tier"), ("replication-worker", "fuse-tier")):
        assert images[f"{key}-image"] == built.name(key)
        assert run(built, key, "sh", "-c", f"command -v {command}").strip() == f"/opt/fuse-tier/bin/{command}"
    run(built, "csi", "fuse-tier-clean", "--version")
    for target in ("controller", "ranks"):
        run(built, target, "sh", "-c", f"command -v fuse-tier-{target}")


@pytest.mark.parametrize("target", TARGETS)
def test_no_compiler_and_no_installer_is_left_in_an_image(built: Built, target: str) -> None:
    found = run(built, target, "sh", "-c", "command -v gcc cc pip pip3 git curl || echo none")
    assert found.strip() == "none"
