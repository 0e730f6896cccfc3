"""The parts of Kubernetes that are on this machine: KUBEBUILDER_ASSETS says where to look first."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from fuse_tier.errors import ConfigError

TOOLS: Final = Path(__file__).parents[2] / ".tools"
_NAMES: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")


def lacking() -> str:
    """What is not here and how it comes; empty when all is here."""
    absent = [name for name in _NAMES if _find(name) is None]
    return f"needs {' and '.join(sorted(absent))} (make kube, where Go is)" if absent else ""


def program(name: str) -> str:
    """Where one of them is. Raises ConfigError."""
    found = _find(name)
    if found is None:
        raise ConfigError(lacking())
    return found


def _find(name: str) -> str | None:
    places = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(TOOLS / "bin"), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(filter(None, places)))
