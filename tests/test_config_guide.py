"""docs/configuration.md says what the models do: every key, its default, its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fuse_tier.config import (
    CoordinatorConfig,
    NodeConfig,
    coordinator_config,
    load_coordinator_config,
    load_node_config,
    node_config,
)
from fuse_tier.config_errors import section_of

SMALLEST: dict[str, Any] = {
    "node": "a",
    "ram": {"path": "/ram", "size": "64Mi"},
    "socket": "/run/a.sock",
    "listen": {"control": "127.0.0.1:7460", "bulk": "127.0.0.1:7461"},
}
GUIDE = Path(__file__).parents[1] / "docs/configuration.md"


def documented_keys(heading: str) -> dict[str, tuple[str, str]]:
    """Key to default and meaning, as the guide's table under a heading has them."""
    section = GUIDE.read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "| `" in line]
    return {key.strip("` "): (default.strip("`"), meaning) for key, _, default, meaning in rows}


def keys_of_model(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        section = section_of(field.annotation)
        if section is None:
            yield key, field
        else:
            yield from keys_of_model(section, f"{key}.")


@pytest.mark.parametrize(("heading", "model"), [("A node", NodeConfig), ("A coordinator", CoordinatorConfig)])
def test_the_guide_has_every_key_with_its_meaning_and_default(heading: str, model: type[BaseModel]) -> None:
    documented = documented_keys(heading)
    fields = dict(keys_of_model(model))
    assert list(documented) == list(fields)
    for key, field in fields.items():
        default, meaning = documented[key]
        assert meaning == field.description, key
        assert (default == "required") == field.is_required(), key


def with_key(values: Any, path: list[str], value: object) -> dict[str, Any]:
    """A configuration with one more key, however deep."""
    inner = with_key(values.get(path[0], {}), path[1:], value) if path[1:] else value
    return {**values, path[0]: inner}


def test_a_default_of_the_guide_written_out_changes_nothing() -> None:
    for key, (default, _) in documented_keys("A node").items():
        if default in ("required", "none"):
            continue
        written_out = with_key(SMALLEST, key.split("."), yaml.safe_load(default))
        assert node_config(written_out) == node_config(SMALLEST), key
    lease = documented_keys("A coordinator")["lease"][0]
    assert coordinator_config({"listen": "127.0.0.1:1", "lease": lease}) == coordinator_config(
        {"listen": "127.0.0.1:1"}
    )


def test_the_files_in_the_guide_are_valid(tmp_path: Path) -> None:
    node, coordinator = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text(node)
    assert load_node_config(path).node == "a"
    path.write_text(coordinator)
    assert load_coordinator_config(path).lease == 5.0
