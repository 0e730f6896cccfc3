from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import structlog

from tests.harness.logs import ExpectedLogs, listen, stop_listening


@pytest.fixture
def heard() -> ExpectedLogs:
    return ExpectedLogs()


@pytest.fixture
def listening(heard: ExpectedLogs, expected_logs: ExpectedLogs) -> object:
    """``heard`` in place of the one that judges this test."""
    expected_logs.allow("a library's worry")
    ear = listen(heard)
    yield heard
    stop_listening(ear)


@pytest.mark.usefixtures("listening")
def test_our_own_warnings_are_heard_and_lesser_lines_are_not(heard: ExpectedLogs) -> None:
    log = structlog.get_logger("any")
    log.info("snapshot.committed", bytes=1)
    log.warning("copy.failed", peer="b")
    assert [line.event for line in heard.unannounced()] == ["copy.failed"]


@pytest.mark.usefixtures("listening")
def test_a_librarys_warnings_are_heard(heard: ExpectedLogs) -> None:
    logging.getLogger("some.library").info("all is well")
    logging.getLogger("some.library").warning("a library's %s", "worry")
    assert [line.event for line in heard.unannounced()] == ["a library's worry"]


@pytest.mark.usefixtures("listening")
def test_what_is_announced_is_not_reported(heard: ExpectedLogs) -> None:
    structlog.get_logger("any").error("copy.failed", peer="b")
    heard.allow(r"copy\..*")
    assert heard.unannounced() == []


def test_an_announcement_matches_whole_names_only(heard: ExpectedLogs, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(json.dumps({"level": "error", "event": "copy.failed.badly"}) + "\n")
    heard.watch(tmp_path)
    heard.allow("copy.failed")
    assert [line.event for line in heard.unannounced()] == ["copy.failed.badly"]


def test_a_line_of_a_process_that_is_not_structured_is_reported(heard: ExpectedLogs, tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text('{"level": "info", "event": "fine"}\nTraceback (most recent call last):\n\n')
    heard.watch(file)
    assert [str(line) for line in heard.unannounced()] == ["a.log: Traceback (most recent call last):"]
