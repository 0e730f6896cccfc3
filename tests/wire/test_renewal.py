"""Certificates that are replaced on disk are taken up by who is running."""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import astuple
from pathlib import Path

import pytest

from fuse_tier.errors import ConfigError
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.renewal import Renewing, current_client_context
from fuse_tier.wire.tls import TlsFiles, check
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import check_producible, holding, keep
from tests.wire.peers import running_peer


def made_of(files: TlsFiles) -> bytes:
    check(files)
    return b"".join(Path(path).read_bytes() for path in astuple(files))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_authority(str(tmp_path))
    return tmp_path


def replace_authority(directory: Path) -> None:
    """And with it everything that the old one signed is void."""
    for name in ("ca.pem", "ca.key"):
        (directory / name).unlink()
    make_authority(str(directory))


def test_the_same_is_used_until_the_files_change(directory: Path) -> None:
    files = make_certificate(str(directory), "a")
    renewing = Renewing(files, made_of)
    first = renewing.current()
    assert renewing.current() is first
    make_certificate(str(directory), "a")
    second = renewing.current()
    assert second != first
    assert renewing.current() is second


def test_a_renewal_that_is_only_half_done_changes_nothing_yet_and_is_told_once(
    directory: Path, expected_logs: ExpectedLogs
) -> None:
    files = make_certificate(str(directory), "a")
    renewing = Renewing(files, made_of)
    before = renewing.current()
    (directory / "new").mkdir()
    for name in ("ca.pem", "ca.key"):
        os.link(directory / name, directory / "new" / name)
    new = make_certificate(str(directory / "new"), "a")
    os.rename(new.cert, files.cert)
    expected_logs.allow("tls.not_renewed")
    assert renewing.current() is before
    assert renewing.current() is before
    assert len(expected_logs.heard) == 1
    os.rename(new.key, files.key)
    assert renewing.current() != before


def test_files_that_are_away_for_a_moment_change_nothing(directory: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("tls.not_renewed")
    files = make_certificate(str(directory), "a")
    renewing = Renewing(files, made_of)
    before = renewing.current()
    os.rename(files.key, f"{files.key}.away")
    assert renewing.current() is before
    os.rename(f"{files.key}.away", files.key)
    assert renewing.current() == before


def test_files_of_no_use_are_an_error_at_the_start(directory: Path) -> None:
    files = make_certificate(str(directory), "a")
    Path(files.cert).write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="holds no PEM certificate"):
        current_client_context(files)


async def test_both_ports_and_their_clients_take_up_what_a_new_authority_signed(
    directory: Path, memory_path: Path, expected_logs: ExpectedLogs
) -> None:
    a, b = (make_certificate(str(directory), name) for name in ("a", "b"))
    async with running_peer(memory_path, b) as peer:
        async with aclosing(peer.tier(a)) as tier:
            await keep(tier, {"weights": b"0123"})
            replace_authority(directory)
            for name in ("a", "b"):
                make_certificate(str(directory), name)
            source, sink = holding([b"4567"]), MemoryBlobs()
            await tier.store(source.contents.keys(), source)  # over a new control connection, and a new stream
            assert (await tier.fetch(source.contents.keys(), sink)).arrived == source.contents.keys()
            await check_producible(tier)
        async with aclosing(peer.tier(make_certificate(str(directory), "a"))) as later:
            await check_producible(later)
