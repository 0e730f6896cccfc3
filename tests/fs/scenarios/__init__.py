"""All scenarios, by theme."""

from tests.fs.scenarios import attributes, content, names, permissions
from tests.fs.scenarios.scenario import SCENARIOS, run

__all__ = ["SCENARIOS", "attributes", "content", "names", "permissions", "run"]
