"""How many examples a random test has: a number of its own, of which each profile gives the share it gives of all."""

from __future__ import annotations

from typing import Final

from hypothesis import settings

_OF_ALL: Final = 100  # what Hypothesis gives where nobody says anything


def examples(whole: int) -> int:
    """So many in ``make test``, and a part of them in ``make test-fast``."""
    return max(1, whole * settings().max_examples // _OF_ALL)
