"""Which images the driver's containers run: a config map, and another one that overrides it key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fuse_tier.errors import ConfigError

CUSTOM_KEY: Final = "custom-image-config-name"
KEYS: Final = ("registrar-image", "liveness-probe-image", "csi-image", "fuse-image", "replication-worker-image")


@dataclass(frozen=True, slots=True)
class Images:
    """One for each container, in the containers' order."""

    registrar: str
    liveness_probe: str
    csi: str
    fuse: str
    replication_worker: str


def choose_images(name: str, config_maps: Mapping[str, Mapping[str, str]]) -> Images:
    """From the data of the namespace's config maps, by their names; ``name`` is the one with all keys.

    An override that is named and not there overrides nothing. Raises ConfigError, which says what to do.
    """
    given = config_maps.get(name)
    if given is None:
        raise ConfigError(f"the config map {name} is missing: kubectl apply -k deploy/multitier/controller makes it")
    custom = config_maps.get(given.get(CUSTOM_KEY, ""), {})
    found = {key: (custom.get(key) or given.get(key) or "").strip() for key in KEYS}
    lacking = [key for key in KEYS if not found[key]]
    if lacking:
        raise ConfigError(f"the config map {name} lacks {', '.join(lacking)}: give each the name of an image")
    return Images(*found.values())
