from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuse_tier.errors import MountError
from fuse_tier.identity import Identity
from fuse_tier.node.keepers import KeeperState, prepare_place, socket_of

STATE: dict[str, Any] = {
    "identity": "default/job/0",
    "mountpoint": "/mnt",
    "device": 1,
    "read_only": False,
    "pid": 2,
    "daemon": 3,
    "generation": 0,
    "failures": 0,
    "passthrough": True,
    "plain_reason": "",
    "version": "1",
    "settings": {},
    "kept": True,
    "reason": "",
}


def test_what_a_newer_keeper_says_beyond_our_words_is_passed_over() -> None:
    state = KeeperState.parse(json.dumps(STATE | {"mood": "fine"}).encode())
    assert (state.pid, state.daemon, state.kept) == (2, 3, True)


@pytest.mark.parametrize("message", [b"", b"[]", b"{}", b"\xff", b'{"pid": 2}'])
def test_what_nobody_understands_is_an_error(message: bytes) -> None:
    with pytest.raises(MountError, match="which nobody understands"):
        KeeperState.parse(message)


def test_each_volume_has_a_short_socket_of_its_own() -> None:
    paths = {socket_of("/run", Identity("n" * 60, "w" * 60, str(number))) for number in range(100)}
    assert len(paths) == 100
    assert {len(path) for path in paths} == {len("/run/") + 16}


def test_a_place_is_made_and_cleared_of_what_is_not_wanted(tmp_path: Path) -> None:
    place = tmp_path / "node.sock.mounts"
    prepare_place(str(place), frozenset())
    assert place.stat().st_mode & 0o777 == 0o700
    for name in ("wanted", "stale"):
        (place / name).touch()
    prepare_place(str(place), frozenset({str(place / "wanted")}))
    assert [path.name for path in place.iterdir()] == ["wanted"]
