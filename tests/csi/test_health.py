"""Looks through mounts: one at a time for each, whatever hangs, and what has changed is said once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from csi.driver import Driver, Mounted
from csi.health import Health
from csi.records import Publication, Records
from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from tests.fs import mounted as fs
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


class Supervisor:
    """Has nothing to say against any mount."""

    async def find(self, path: str) -> Mounted | None:
        """Nothing known."""
        return None


@pytest.fixture
def volume(memory_path: Path, tmp_path: Path) -> Iterator[fs.Mounted]:
    place = fs.Place(memory_path, tmp_path / "fs.log", memory_path / "mnt")
    place.prepare()
    mounted = fs.Mounted(place)
    daemon = mounted.daemon
    try:
        yield mounted
    finally:
        with suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGCONT)
        mounted.destroy()


async def test_a_volume_that_hangs_is_said_once_and_costs_one_thread_however_often_it_is_looked_at(
    volume: fs.Mounted, tmp_path: Path, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_logs.allow("volume.unwell")
    monkeypatch.setattr(Deadline, "CHANNEL_CALL", 0.2)
    records = Records(str(tmp_path / "published"))
    records.write(Publication("v", str(volume.path), "default", "pod", "uid", "default/job/0", read_only=False))
    health = Health(cast(Driver, Supervisor()), records)
    await health.examine_all()
    assert unwell() == 0
    os.kill(volume.daemon, signal.SIGSTOP)
    await health.examine_all()
    assert unwell() == 1
    threads = threading.active_count()
    for _ in range(8):
        assert "does not answer" in await health.trouble(next(iter(records)))
    await health.examine_all()
    assert threading.active_count() <= threads + 1  # one more that trio may keep for reading files
    os.kill(volume.daemon, signal.SIGCONT)

    async def is_well() -> bool:
        await health.examine_all()
        return unwell() == 0

    await until(is_well)


def unwell() -> float:
    families: dict[str, Any] = {family.name: family for family in metrics.REGISTRY.collect()}
    return float(families["fuse_tier_volumes_unwell"].samples[0].value)
