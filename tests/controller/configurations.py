"""CheckpointConfigurations for tests, as the API server gives them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import yaml

from controller.driver.configuration import Configuration, read_configuration
from controller.driver.containers import Settings
from controller.driver.images import KEYS, Images
from controller.local.programs import TOOLS

UID = "d6cc2e82-385d-40ca-ab80-1a0879fd25cf"
SETTINGS = Settings(
    "gke-managed-checkpointing",
    "gke-checkpointing-multitier-node",
    "multitier-checkpoint.csi.storage.gke.io",
    19346,
)
IMAGES = Images(*(f"registry.example/{key}:1" for key in KEYS))
EXAMPLE: dict[str, Any] = yaml.safe_load((TOOLS.parent / "examples/checkpointconfiguration.yaml").read_text())


def configuration_object(name: str = "default", uid: str = UID, **spec: Any) -> dict[str, Any]:
    """The example with other values; None leaves a field out."""
    found = deepcopy(EXAMPLE)
    found["metadata"] |= {
        "name": name, "uid": uid, "generation": 1, "creationTimestamp": "2026-01-31T08:30:00Z"
    }  # fmt: skip
    found["spec"] = {key: value for key, value in (found["spec"] | spec).items() if value is not None}
    return found


def configuration(name: str = "default", uid: str = UID, **spec: Any) -> Configuration:
    """The same, read."""
    return read_configuration(configuration_object(name, uid, **spec))
