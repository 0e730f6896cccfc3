"""What a process logs, as those who read the lines get it: a real process, its stderr a pipe or a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

PROGRAM = """
import logging, warnings, structlog
log = structlog.get_logger("early")
from fuse_tier import logs
logs.configure("worker", "a")
{body}
"""


def run(body: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        timeout=30,
        check=True,
    )
    return result.stderr.decode()


def lines(body: str, **environment: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(body, **environment).splitlines()]


def test_a_line_has_time_level_event_role_and_node() -> None:
    (line,) = lines("log.info('snapshot.committed', identity='ns/w/0', bytes=3, path=b'x')")
    assert datetime.now(UTC) - datetime.fromisoformat(line.pop("time")) < timedelta(minutes=1)
    assert line == {
        "level": "info",
        "event": "snapshot.committed",
        "role": "worker",
        "node": "a",
        "identity": "ns/w/0",
        "bytes": 3,
        "path": "b'x'",
    }


def test_an_exception_is_one_line_with_its_traceback() -> None:
    (line,) = lines("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('copy.failed')")
    assert line["level"] == "error"
    assert "ZeroDivisionError: division by zero" in line["exception"]


def test_what_libraries_log_comes_out_the_same_way_from_warnings_up() -> None:
    first, second = lines(
        "logging.getLogger('urllib3').info('quiet')\n"
        "logging.getLogger('urllib3').warning('retrying %s', 'x')\n"
        "warnings.warn('old', RuntimeWarning, stacklevel=1)"
    )
    assert (first["event"], first["logger"], first["level"], first["node"]) == (
        "retrying x",
        "urllib3",
        "warning",
        "a",
    )
    assert (second["logger"], second["role"]) == ("py.warnings", "worker")


@pytest.mark.parametrize(("level", "count"), [("", 1), ("debug", 2), ("ERROR", 0), ("nonsense", 1)])
def test_the_level_comes_from_the_environment(level: str, count: int) -> None:
    assert len(lines("log.debug('x'); log.info('y')", FUSE_TIER_LOG_LEVEL=level)) == count


def test_secrets_are_not_written() -> None:
    text = run("log.info('session.opened', token=b'abc', Authorization='Bearer abc', peer='b')")
    assert "abc" not in text
    assert json.loads(text)["peer"] == "b"


def test_a_traceback_on_a_terminal_shows_no_values() -> None:
    master, slave = pty.openpty()
    try:
        work = "def work(phrase):\n    1 / 0\n"
        body = work + "try:\n    work('hunter' + '2')\nexcept Exception:\n    log.exception('x')"
        subprocess.run([sys.executable, "-c", PROGRAM.format(body=body)], stderr=slave, timeout=30, check=True)
        text = os.read(master, 1 << 16).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert "ZeroDivisionError" in text
    assert "hunter2" not in text


def test_a_terminal_gets_lines_to_read() -> None:
    master, slave = pty.openpty()
    try:
        program = PROGRAM.format(body="log.info('snapshot.committed', bytes=3)")
        subprocess.run(
            [sys.executable, "-c", program], stderr=slave, env=os.environ | {"NO_COLOR": "1"}, timeout=30, check=True
        )
        text = os.read(master, 4096).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert "snapshot.committed" in text
    assert "bytes=3" in text
    assert not text.startswith("{")
