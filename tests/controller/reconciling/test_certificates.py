from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.driver.names import CERTIFICATE_SECRETS
from controller.reconciling.authorities import Authority, new_authority, own_authority
from controller.reconciling.certificates import (
    Signing,
    decoded,
    encoded,
    nodes_files,
    own_files,
    shard_of,
)
from fuse_tier.wire.tls import TlsFiles, check, common_name

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return own_authority(new_authority(), "ours")


@pytest.fixture
def signing(authority: Authority) -> Signing:
    return Signing(authority, authority.anchors, True, NOW)


def after(signing: Signing, days: int) -> Signing:
    return replace(signing, now=NOW + timedelta(days=days))


def test_each_node_has_a_certificate_of_its_own_that_a_node_takes(signing: Signing, tmp_path: Path) -> None:
    files = nodes_files(signing, ["a", "b"], {})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for node in "ab":
        found = TlsFiles(*(str(tmp_path / name) for name in ("ca.crt", f"{node}.crt", f"{node}.key")))
        check(found)
        assert common_name(found) == node
    assert set(files) == {"ca.crt", "a.crt", "a.key", "b.crt", "b.key"}
    server = own_files(signing, "ranks", {})
    assert own_files(signing, "ranks", server) == server
    assert decoded({"data": encoded(server)}) == server


def test_certificates_stay_until_two_thirds_of_their_life_are_over(signing: Signing) -> None:
    first = nodes_files(signing, ["a", "b"], {})
    assert nodes_files(after(signing, 240), ["a", "b"], first) == first
    later = nodes_files(after(signing, 250), ["a", "b"], first)
    assert all(later[name] != first[name] for name in ("a.crt", "a.key", "b.crt", "b.key"))


def test_a_node_that_comes_or_goes_changes_nobody_elses(signing: Signing) -> None:
    first = nodes_files(signing, ["a", "b"], {})
    second = nodes_files(signing, ["b", "c"], first)
    assert (second["b.crt"], set(second)) == (first["b.crt"], {"ca.crt", "b.crt", "b.key", "c.crt", "c.key"})


def test_what_another_authority_signed_or_nobody_can_read_is_replaced(signing: Signing) -> None:
    other = own_authority(new_authority(), "other")
    foreign = nodes_files(replace(signing, authority=other), ["a"], {})
    for present in (foreign, {**foreign, "a.crt": b"nonsense"}):
        found = nodes_files(replace(signing, is_known=False), ["a"], present)
        assert found["a.crt"] != present["a.crt"], "nobody trusts it"
    kept = nodes_files(signing, ["a"], {})
    assert nodes_files(signing, ["a"], {"a.crt": kept["a.crt"]})["a.crt"] != kept["a.crt"], "its key is lost"


def test_a_thousand_nodes_fit_into_their_secrets(signing: Signing) -> None:
    nodes = [f"gke-training-pool-with-a-long-name-{number:08x}-{number:04x}" for number in range(1000)]
    (one,) = [len(content) for name, content in nodes_files(signing, nodes[:1], {}).items() if name != "ca.crt"][:1]
    sizes = [0] * CERTIFICATE_SECRETS
    for node in nodes:
        sizes[shard_of(node)] += one + 300 + 2 * len(node)
    assert min(sizes) > 0
    assert max(sizes) < (1 << 20) / 8
