from __future__ import annotations

import pytest

from tests.harness import needs


@pytest.mark.parametrize(
    ("text", "names"),
    [("", set()), ("fuse", {"fuse"}), ("fuse,root", {"fuse", "root"}), (" fuse root ", {"fuse", "root"})],
)
def test_required_needs_are_read_from_the_environment(text: str, names: set[str]) -> None:
    assert needs.required({needs.REQUIRE: text}) == names


def test_nothing_is_required_by_default() -> None:
    assert needs.required({}) == frozenset()
