"""Notes of who has which volume: whole or not there, whoever lists them meanwhile, and none is lost by accident."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from csi.records import Publication, Records
from fuse_tier.wire.statuses import StatedError
from tests.harness.logs import ExpectedLogs

NOTE = Publication("v", "/pods/uid/mount", "default", "llama-0", "uid", "default/llama/0", read_only=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "published"


def test_a_note_is_found_by_another_process_until_it_is_forgotten(directory: Path) -> None:
    records = Records(str(directory))
    assert (records.find("v"), list(records)) == (None, [])
    records.write(NOTE)
    assert Records(str(directory)).find("v") == NOTE
    records.write(replace(NOTE, read_only=True))
    assert [note.read_only for note in Records(str(directory))] == [True]
    records.forget("v")
    records.forget("v")
    assert (records.find("v"), os.listdir(directory)) == (None, [])


def test_who_lists_the_notes_neither_sees_nor_disturbs_one_that_is_being_written(directory: Path) -> None:
    records = Records(str(directory))
    seen: set[Publication] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.update(records)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(200):
            records.write(replace(NOTE, volume_id=f"v{number % 2}"))
            records.forget(f"v{(number + 1) % 2}")
    finally:
        done.set()
        reader.join()
    assert seen <= {replace(NOTE, volume_id=f"v{number}") for number in range(2)}
    assert [note.volume_id for note in records] == ["v1"]


def test_a_note_that_makes_no_sense_is_removed_and_said(directory: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("record.unreadable")
    records = Records(str(directory))
    for volume_id, content in (("v1", "{"), ("v2", '{"volume_id": "v2"}'), ("v3", "[]"), ("v4", "")):
        records.write(replace(NOTE, volume_id=volume_id))
        (written,) = directory.iterdir()
        written.write_text(content)
        assert records.find(volume_id) is None
        assert os.listdir(directory) == []
    assert [line.event for line in expected_logs.heard] == ["record.unreadable"] * 4


def test_a_disk_that_fails_takes_no_note_and_is_named(directory: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("record.unreadable")
    records = Records(str(directory))
    records.write(NOTE)
    (written,) = directory.iterdir()
    written.unlink()
    written.mkdir()  # reading and replacing it fail, as on a disk that is broken
    works: list[Callable[[], object]] = [
        lambda: records.find("v"),
        lambda: records.write(NOTE),
        lambda: records.forget("v"),
    ]
    for work in works:
        with pytest.raises(StatedError, match=f"note of volume v below {directory} .* see to that disk") as refusal:
            work()
        assert refusal.value.status is grpc.StatusCode.INTERNAL
    assert list(records) == []
    assert written.exists()
