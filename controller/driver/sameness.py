"""Whether an object is already what a manifest says, so that nothing is written where nothing is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Places where an object is not what a manifest wants; it may have more (the API server fills in defaults)."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return [
            place
            for key, value in wanted.items()
            for place in (differences(value, found[key], f"{path}.{key}") if key in found else [f"{path}.{key}"])
        ]
    if _is_list(wanted) and _is_list(found) and len(wanted) == len(found):
        return [place for n, one in enumerate(wanted) for place in differences(one, found[n], f"{path}[{n}]")]
    return [] if wanted == found else [path]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
