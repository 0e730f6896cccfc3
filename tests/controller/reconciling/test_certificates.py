from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.driver.manifests import config_map
from controller.driver.names import CERTIFICATE_SECRETS, certificate_sources, certificates_names, shard_of
from controller.reconciling.authorities import Authority, new_authority, own_authority
from controller.reconciling.certificates import (
    Signing,
    decoded,
    encoded,
    nodes_files,
    own_files,
    trouble_of,
)
from fuse_tier.config import load_node_config
from fuse_tier.wire.tls import TlsFiles, check, common_name
from tests.controller.configurations import SETTINGS, configuration

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return own_authority(new_authority(), "ours")


@pytest.fixture
def signing(authority: Authority) -> Signing:
    return Signing(authority, authority.anchors, True, NOW)


def after(signing: Signing, days: int) -> Signing:
    return replace(signing, now=NOW + timedelta(days=days))


def lay_out(secrets: Mapping[str, Mapping[str, bytes]], directory: Path) -> None:
    """As the kubelet does for a pod: whole Secrets, one after another, then single files of them."""
    for source in certificate_sources("uid"):
        secret = source["secret"]
        files = secrets[secret["name"]]
        wanted = [(one["key"], one["path"]) for one in secret.get("items", ())] or [(name, name) for name in files]
        for key, path in wanted:
            if key in files or not secret.get("optional"):
                (directory / path).write_bytes(files[key])


@pytest.mark.parametrize("nodes", [["a", "b"], ["a", "b", "ca", "tls", "authorities"]], ids=["two", "odd names"])
def test_each_node_has_a_certificate_of_its_own_that_a_node_takes(
    signing: Signing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[str]
) -> None:
    secrets = certificates_names("uid")
    found = {
        name: nodes_files(signing, [node for node in nodes if shard_of(node) == number], {})
        for number, name in enumerate(secrets)
    }
    lay_out(found, tmp_path)
    monkeypatch.setenv("HOST_IP", "10.0.0.1")
    told = tmp_path / "node.yaml"
    told.write_text(config_map(configuration(), SETTINGS)["data"]["node.yaml"])
    for node in nodes:
        monkeypatch.setenv("NODE_NAME", node)
        config = load_node_config(told).tls
        assert config
        here = TlsFiles(*(str(tmp_path / Path(path).name) for path in (config.ca, config.cert, config.key)))
        check(here)
        assert common_name(here) == node
        assert Path(here.ca).read_bytes() == signing.trusted
    # Pods of an earlier version take whole Secrets, and trust what they call so.
    assert all(files["ca.crt"] == signing.trusted for files in found.values())
    assert all(nodes_files(signing, nodes, files).items() >= files.items() for files in found.values()), "it is kept"


def test_who_is_no_node_has_files_of_its_own_names(signing: Signing) -> None:
    server = own_files(signing, "ranks", {})
    assert set(server) == {"ca.crt", "tls.crt", "tls.key"}
    assert own_files(signing, "ranks", server) == server
    assert decoded({"data": encoded(server)}) == server


def test_a_node_whose_name_no_certificate_has_room_for_has_none_and_the_others_have_theirs(signing: Signing) -> None:
    long = "a" * 65
    found = nodes_files(signing, ["a", long], {})
    assert set(found) == {"ca.crt", "authorities.pem", "a.crt", "a.key"}
    assert [trouble_of(node) is None for node in ("a", "ca", long)] == [True, True, False]


def test_certificates_stay_until_two_thirds_of_their_life_are_over(signing: Signing) -> None:
    first = nodes_files(signing, ["a", "b"], {})
    assert nodes_files(after(signing, 240), ["a", "b"], first) == first
    later = nodes_files(after(signing, 250), ["a", "b"], first)
    assert all(later[name] != first[name] for name in ("a.crt", "a.key", "b.crt", "b.key"))


def test_a_node_that_comes_or_goes_changes_nobody_elses(signing: Signing) -> None:
    first = nodes_files(signing, ["a", "b"], {})
    second = nodes_files(signing, ["b", "c"], first)
    assert second["b.crt"] == first["b.crt"]
    assert set(second) == {"ca.crt", "authorities.pem", "b.crt", "b.key", "c.crt", "c.key"}


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
    (one,) = [
        len(content) for name, content in nodes_files(signing, nodes[:1], {}).items() if name == f"{nodes[0]}.crt"
    ]
    sizes = [0] * CERTIFICATE_SECRETS
    for node in nodes:
        sizes[shard_of(node)] += one + 300 + 2 * len(node)
    assert min(sizes) > 0
    assert max(sizes) < (1 << 20) / 8
