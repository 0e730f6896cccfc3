from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
import trio.testing

from fuse_tier.errors import Damaged, FuseTierError
from fuse_tier.localcluster import in_directory


async def test_the_directory_is_there_meanwhile_and_gone_afterwards() -> None:
    async def main(directory: Path) -> Path:
        (directory / "file").write_text("content")
        return directory

    assert not (await in_directory("fuse-tier-test-", main)).exists()


async def test_an_error_out_of_nested_nurseries_is_raised_alone() -> None:
    async def fail() -> None:
        raise Damaged("the bytes are wrong")

    async def main(directory: Path) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(trio.sleep_forever)
            async with trio.open_nursery() as inner:
                inner.start_soon(fail)

    with pytest.raises(Damaged, match="the bytes are wrong"):
        await in_directory("fuse-tier-test-", main)


async def test_what_is_no_error_of_ours_is_not_disguised() -> None:
    async def main(directory: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        await in_directory("fuse-tier-test-", main)


async def test_sigterm_cleans_up() -> None:
    seen: list[Path] = []

    async def main(directory: Path) -> None:
        seen.append(directory)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    with pytest.raises(FuseTierError, match="SIGTERM"):
        await in_directory("fuse-tier-test-", main)
    assert not seen[0].exists()
