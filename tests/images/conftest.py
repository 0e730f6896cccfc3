"""All images are built once for all tests below."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.images import Built, built_images


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    with built_images(tmp_path_factory.mktemp("images")) as found:
        yield found
