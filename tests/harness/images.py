"""Images that ``make multitier-images`` really builds, with buildah, and pushes to a registry on this machine.

Where BASE_IMAGE names none, they stand on a Debian that debootstrap made. What was built is kept in
``.tools/images``, so that only what has changed is built again. Programs run in chroots: what an image has in it is
tried, not what a runtime makes of its settings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.local.programs import TOOLS
from fuse_tier.localcluster.ports import free_ports
from tests.harness.checkouts import make_checkout

TARGETS = ("controller", "ranks", "csi", "fuse", "replication-worker")
TAG = "check"
_STORE = TOOLS / "images"
_BASE = "localhost/fuse-tier-base"
_TRUSTED = "/etc/ssl/certs/ca-certificates.crt"  # this machine's: its registry of packages may be its own
_MOUNTED = "/run/trusted.crt"
_BUILDAH = ("buildah", "--root", str(_STORE / "store"), "--runroot", str(_STORE / "run"))
_START_SECONDS = 30.0


@dataclass(frozen=True)
class Built:
    """Images that a registry has."""

    checkout: Path
    repository: str
    tool: dict[str, str]
    """The variables of ``make multitier-images`` that say what builds."""

    def name(self, target: str) -> str:
        return f"{self.repository}/fuse-tier-{target}:{TAG}"

    def settings(self, target: str) -> dict[str, Any]:
        """What an image says of itself."""
        told = json.loads(buildah("inspect", "--type", "image", self.name(target)))
        return dict(told["OCIv1"]["config"])

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        """A container's name, which programs can be run in."""
        name = buildah("from", "--pull-never", image).strip()
        try:
            yield name
        finally:
            buildah("rm", name)


def in_container(name: str, command: list[str], *options: str) -> list[str]:
    """The command of this machine that runs one in a container."""
    return [*_BUILDAH, "run", "--isolation", "chroot", *options, name, "--", *command]


def buildah(*arguments: str) -> str:
    """What it prints. Raises CalledProcessError, after what it said."""
    return subprocess.run([*_BUILDAH, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def built_images(directory: Path) -> Iterator[Built]:
    """Builds and pushes all of them, as a user does."""
    base = os.environ.get("BASE_IMAGE") or _make_base()
    (port,) = free_ports(1)
    with _registry(directory / "registry", port):
        options = ["--layers", "--isolation", "chroot", "--volume", f"{_TRUSTED}:{_MOUNTED}:ro"]
        options += ["--build-arg", f"PIP_CERT={_MOUNTED}"]
        tool = {
            "BASE_IMAGE": base,
            "CONTAINER_TOOL": " ".join(_BUILDAH),
            "BUILD_OPTIONS": " ".join(options),
            "PUSH_OPTIONS": "--tls-verify=false",
        }
        built = Built(make_checkout(directory / "checkout"), f"127.0.0.1:{port}/fuse-tier", tool)
        words = ["make", "multitier-images", f"REPO_PATH={built.repository}", f"MULTITIER_TAG={TAG}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        subprocess.run(words, cwd=built.checkout, env=environment | tool, check=True)
        try:
            yield built
        finally:
            mine = buildah("images", "--format", "{{.Name}}:{{.Tag}}", "--filter", f"reference={built.repository}/*")
            buildah("rmi", "--force", *mine.split())


def _make_base() -> str:
    file = _STORE / "Dockerfile"
    file.write_text("FROM scratch\nADD base.tar /\n")
    buildah("build", "--layers", "--file", str(file), "--tag", _BASE, str(_STORE))
    return _BASE


@contextmanager
def _registry(directory: Path, port: int) -> Iterator[None]:
    directory.mkdir()
    config = directory / "config.yml"
    settings = {
        "version": 0.1,
        "log": {"accesslog": {"disabled": True}, "level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "images")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    config.write_text(yaml.safe_dump(settings))
    with (directory / "registry.out").open("wb") as out:
        process = subprocess.Popen(
            [str(TOOLS / "bin" / "docker-registry"), "serve", str(config)], stdout=out, stderr=out
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)
