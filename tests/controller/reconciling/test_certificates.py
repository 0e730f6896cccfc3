from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.reconciling.certificates import (
    Authority,
    decoded,
    encoded,
    is_good,
    new_authority,
    nodes_files,
    server_files,
)
from fuse_tier.wire.tls import TlsFiles, check, common_name

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    files = new_authority()
    return Authority(files["ca.crt"], files["ca.key"])


def test_each_node_has_a_certificate_of_its_own_that_a_node_takes(authority: Authority, tmp_path: Path) -> None:
    files = nodes_files(authority, ["a", "b"], {}, NOW)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for node in "ab":
        found = TlsFiles(*(str(tmp_path / name) for name in ("ca.crt", f"{node}.crt", f"{node}.key")))
        check(found)
        assert common_name(found) == node
    assert set(files) == {"ca.crt", "a.crt", "a.key", "b.crt", "b.key"}
    server = server_files(authority, {}, NOW)
    assert server_files(authority, server, NOW) == server
    assert decoded({"data": encoded(server)}) == server


def test_certificates_stay_until_two_thirds_of_their_life_are_over(authority: Authority) -> None:
    first = nodes_files(authority, ["a", "b"], {}, NOW)
    assert nodes_files(authority, ["a", "b"], first, NOW + timedelta(days=240)) == first
    later = nodes_files(authority, ["a", "b"], first, NOW + timedelta(days=250))
    assert all(later[name] != first[name] for name in ("a.crt", "a.key", "b.crt", "b.key"))


def test_a_node_that_comes_or_goes_changes_nobody_elses(authority: Authority) -> None:
    first = nodes_files(authority, ["a", "b"], {}, NOW)
    second = nodes_files(authority, ["b", "c"], first, NOW)
    assert (second["b.crt"], set(second)) == (first["b.crt"], {"ca.crt", "b.crt", "b.key", "c.crt", "c.key"})


def test_what_another_authority_signed_or_nobody_can_read_is_replaced(authority: Authority) -> None:
    other = new_authority()
    foreign = nodes_files(Authority(other["ca.crt"], other["ca.key"]), ["a"], {}, NOW)
    assert not is_good(foreign["a.crt"], authority, NOW)
    assert not is_good(b"nonsense", authority, NOW)
    assert is_good(nodes_files(authority, ["a"], foreign, NOW)["a.crt"], authority, NOW)
    kept = nodes_files(authority, ["a"], {}, NOW)
    assert nodes_files(authority, ["a"], {"a.crt": kept["a.crt"]}, NOW)["a.crt"] != kept["a.crt"], "its key is lost"
