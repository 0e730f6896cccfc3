"""Configurations: the documented file is read as documented, and each mistake is named where it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fuse_tier.config import (
    Address,
    NodeConfig,
    coordinator_config,
    load_coordinator_config,
    load_node_config,
    node_config,
)
from fuse_tier.errors import ConfigError

DOCUMENTED = """\
node: a
ram: {path: run/a/ram, size: 2GiB}        # a tmpfs is mounted there if it is none
socket: run/a/node.sock
listen: {control: 127.0.0.1:7460, bulk: 127.0.0.1:7461}
metrics: 127.0.0.1:7462
coordinator: 127.0.0.1:19346
replicas: 1                               # copies in peers' RAM besides our own
bucket: {url: gs://checkpoints/prefix, endpoint: "http://127.0.0.1:4443"}   # endpoint: emulators only
tls: {ca: ca.pem, cert: a.pem, key: a.key}
fsync: ram                                # what an fsync waits for: ram, peer or bucket
keep: {ram: 2, bucket: 5}                 # snapshots kept per volume and tier
"""
SMALLEST = """\
node: a
ram: {path: /ram, size: 64Mi}
socket: /run/a.sock
listen: {control: 127.0.0.1:7460, bulk: 127.0.0.1:7461}
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "node.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaints(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_node_config(written(tmp_path, text))
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def smallest(**changes: Any) -> dict[str, Any]:
    return {
        "node": "a",
        "ram": {"path": "/ram", "size": "64Mi"},
        "socket": "/run/a.sock",
        "listen": {"control": "127.0.0.1:7460", "bulk": "127.0.0.1:7461"},
    } | changes


def test_the_documented_file_means_what_it_says(tmp_path: Path) -> None:
    config = load_node_config(written(tmp_path, DOCUMENTED))
    assert config.node == "a"
    assert config.ram.path == str(tmp_path / "run/a/ram")
    assert config.ram.size == 2 << 30
    assert config.socket == str(tmp_path / "run/a/node.sock")
    assert config.listen.control == Address("127.0.0.1", 7460)
    assert str(config.coordinator) == "127.0.0.1:19346"
    assert config.bucket
    assert (config.bucket.bucket_name, config.bucket.prefix) == ("checkpoints", "prefix")
    assert config.bucket.endpoint == "http://127.0.0.1:4443"
    assert config.tls
    assert config.tls.cert == str(tmp_path / "a.pem")
    assert (config.keep.ram, config.keep.bucket.last, config.keep.bucket.daily) == (2, 5, 0)


def test_what_is_left_out_has_the_documented_default(tmp_path: Path) -> None:
    config = load_node_config(written(tmp_path, SMALLEST))
    assert config.cluster == "default"
    assert (config.metrics, config.coordinator, config.bucket, config.tls) == (None, None, None, None)
    assert (config.peers, config.replicas, config.fsync) == ((), 1, "ram")
    assert (config.drain, config.settle, config.encrypt_peer_traffic) == (30.0, 0.2, True)


def test_relative_paths_count_from_the_file_wherever_it_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, DOCUMENTED)
    monkeypatch.chdir(tmp_path.parent)
    assert load_node_config(f"{tmp_path.name}/node.yaml").ram.path == str(tmp_path / "run/a/ram")


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load_node_config(written(tmp_path, SMALLEST))
    with pytest.raises(ValidationError, match="frozen"):
        config.node = "b"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("replica: 1", "node.yaml:5: replica: is no known key: did you mean 'replicas'?"),
        ("wings: 2", "node.yaml:5: wings: is no known key: there are node, cluster, ram"),
        ("keep: {rem: 2}", "node.yaml:5: keep.rem: is no known key: did you mean 'ram'?"),
        ("keep: {disk: 2}", "node.yaml:5: keep.disk: is no known key: keep has ram, bucket"),
        ("replicas: two", "node.yaml:5: replicas: 'two' is wrong here: give a whole number"),
        ("replicas: -1", "node.yaml:5: replicas: '-1' is too small: at least 0"),
        ("keep:\n  ram: 0", "node.yaml:6: keep.ram: '0' is too small: at least 1"),
        ("keep: {bucket: 0}", "node.yaml:5: keep.bucket.last: 0 is too small: at least 1"),
        ("keep: {bucket: {dayly: 7}}", "node.yaml:5: keep.bucket.dayly: is no known key: did you mean 'daily'?"),
        ("backup: {every: 5min, steps: 9}", "node.yaml:5: backup.steps: 'every' says when already: give one of"),
        ("backup: never", "node.yaml:5: backup: 'never' is no policy: write always, {every: 30min} or {steps: 100}"),
        ("keep: 3", "node.yaml:5: keep: '3' is wrong here: give a group of keys, {ram: …, bucket: …}"),
        ("fsync: disk", "node.yaml:5: fsync: 'disk' is none of 'ram', 'peer' or 'bucket'"),
        ("metrics: 9090", "node.yaml:5: metrics: 9090 is no address: write HOST:PORT, such as 127.0.0.1:7460"),
        ("metrics: 127.0.0.1:99999", "node.yaml:5: metrics: '127.0.0.1:99999' is no address"),
        ("metrics: ::1:80", "node.yaml:5: metrics: '::1:80' is no address"),
        ("peers: 127.0.0.1:7470", "node.yaml:5: peers: '127.0.0.1:7470' is wrong here: give a list"),
        ("peers:\n- 127.0.0.1:7470\n- b", "node.yaml:7: peers[1]: 'b' is no address"),
        ("drain: soon", "node.yaml:5: drain: 'soon' is no duration: write 30s, 5m or 24h"),
        ("cluster: no", "node.yaml:5: cluster: False is no name"),
        ("cluster: ../b", "node.yaml:5: cluster: '../b' is no name"),
        ("encryptPeerTraffic: maybe", "node.yaml:5: encryptPeerTraffic: 'maybe' is wrong here: give true or false"),
        ("bucket: {url: s3://x}", "node.yaml:5: bucket.url: 's3://x' is no bucket: write gs://BUCKET"),
        ("bucket: {url: gs://abc/../x}", "node.yaml:5: bucket.url: 'gs://abc/../x' is no bucket"),
        ("bucket: {url: gs://abc, endpoint: ftp}", "node.yaml:5: bucket.endpoint: 'ftp' is no endpoint"),
        ("bucket: {}", "node.yaml:5: bucket.url: is missing"),
        ("tls: {ca: a}", "node.yaml:5: tls.cert: is missing"),
        ("domain: {zone: 5}", "node.yaml:5: domain.zone: '5' is wrong here: give text"),
        ("node: b", "node.yaml:5: node: stands here again, after line 1: keep one"),
        ("replicas: !!python/object:os.system {}", "node.yaml:5: replicas: the tag"),
        ("domain: &a {zone: *a}", "node.yaml:5: domain.zone: refers to itself"),
        ("? [1, 2]\n: 3", "node.yaml:1: line 5 has a key that is no name"),
    ],
)
def test_a_mistake_is_named_with_its_line_its_key_and_what_is_expected(
    tmp_path: Path, line: str, complaint: str
) -> None:
    found = complaints(tmp_path, f"{SMALLEST}{line}\n")
    assert any(one.startswith(complaint) for one in found), found


def test_a_size_that_is_no_quantity_is_named_with_its_line(tmp_path: Path) -> None:
    text = SMALLEST.replace("ram: {path: /ram, size: 64Mi}", "ram:\n  path: /ram\n  size: 2 gigs")
    assert complaints(tmp_path, text) == ["node.yaml:4: ram.size: '2 gigs' is no quantity: write 2GiB or 500MB"]


def test_every_mistake_is_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SMALLEST.replace("size: 64Mi", "size: 1") + "replicas: x\nwings: 1\n"
    assert [line.split(": ")[:2] for line in complaints(tmp_path, text)] == [
        ["node.yaml:2", "ram.size"],
        ["node.yaml:5", "replicas"],
        ["node.yaml:6", "wings"],
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert complaints(tmp_path, "node: a\n") == [
        "node.yaml:1: ram: is missing: give a group of keys, {path: …, size: …}",
        "node.yaml:1: socket: is missing: give a value",
        "node.yaml:1: listen: is missing: give a group of keys, {control: …, bulk: …}",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "node.yaml: is empty"),
        ("# nothing\n", "node.yaml: is empty"),
        ("node: a\nram: {path: x\n", "node.yaml:3: is no valid YAML: "),
        ("a: b: c", "node.yaml:1: is no valid YAML: "),
        ("node: a\n---\nnode: b\n", "node.yaml:2: is no valid YAML: "),
        (b"node: \xff\n", "node.yaml: is no valid YAML: "),
        ("- a\n- b\n", "node.yaml:1: a list is wrong here: give a group of keys"),
        ("a" * (1 << 21), "node.yaml: is longer than"),
    ],
)
def test_a_file_that_is_no_configuration_says_so(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    (found,) = complaints(tmp_path, content)
    assert found.startswith(complaint)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file: name an existing configuration"):
        load_node_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_node_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"listen": {"control": "10.0.0.1:1", "bulk": "127.0.0.1:2"}}, "listen.control: 10.0.0.1:1 is reached over"),
        ({"listen": {"control": "127.0.0.1:1", "bulk": "0.0.0.0:2"}}, "listen.bulk: 0.0.0.0:2 is reached over"),
        ({"coordinator": "ranks.example:19346"}, "coordinator: ranks.example:19346 is reached over"),
        ({"peers": ["127.0.0.1:1", "[fd00::1]:2"]}, "peers[1]: [fd00::1]:2 is reached over"),
        ({"peers": ["127.0.0.1:1"], "coordinator": "127.0.0.1:2"}, "peers: the coordinator knows the peers"),
        ({"peers": ["127.0.0.1:7460"]}, "peers[0]: 127.0.0.1:7460 is this node itself"),
        ({"metrics": "127.0.0.1:7461"}, "metrics: 127.0.0.1:7461 is taken by listen.bulk"),
        ({"fsync": "peer"}, "fsync: 'peer' would wait for ever"),
        ({"reserve": "1TiB"}, "reserve: it leaves nothing of ram.size"),
        ({"fsync": "peer", "peers": ["127.0.0.1:1"], "replicas": 0}, "fsync: 'peer' would wait for ever"),
        ({"fsync": "bucket"}, "fsync: 'bucket' would wait for ever"),
        ({"socket": "/" + "x" * 89}, "is too long for a unix socket"),
        ({"socket": "a.sock"}, "socket: 'a.sock' must be an absolute path"),
    ],
)
def test_what_cannot_work_together_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        node_config(smallest(**changes))
    assert complaint in str(caught.value)


def test_with_certificates_addresses_may_be_on_a_network() -> None:
    tls = {"ca": "/ca.pem", "cert": "/a.pem", "key": "/a.key"}
    config = node_config(smallest(tls=tls, listen={"control": "10.0.0.1:1", "bulk": "node-a.example:2"}))
    assert str(config.listen.bulk) == "node-a.example:2"


def test_a_rule_across_keys_is_reported_with_its_line(tmp_path: Path) -> None:
    text = SMALLEST + "peers:\n- 127.0.0.1:1\n- 10.0.0.2:7460\n"
    (found,) = complaints(tmp_path, text)
    assert found.startswith("node.yaml:7: peers[1]: 10.0.0.2:7460 is reached over a network: give tls")


def test_programs_give_paths_and_addresses_as_values(tmp_path: Path) -> None:
    config = node_config(smallest(socket=tmp_path / "s", metrics=Address("::1", 9)), directory=tmp_path)
    assert config.socket == str(tmp_path / "s")
    assert str(config.metrics) == "[::1]:9"


@pytest.mark.parametrize("text", ["127.0.0.1:1", "localhost:1", "[::1]:65535", "127.9.9.9:7460"])
def test_loopback_addresses_are_known_as_such_and_are_written_as_they_were_read(text: str) -> None:
    address = Address.parse(text)
    assert address.is_loopback
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "a:", "a:0", "a:65536", "a:1x", "a b:1", "a/b:1", "[127.0.0.1]:1", "-a:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address: write HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("url", "name", "prefix"),
    [("gs://abc", "abc", ""), ("gs://abc/", "abc", ""), ("gs://a-b.c/x/y/", "a-b.c", "x/y")],
)
def test_a_bucket_is_a_name_and_a_prefix(url: str, name: str, prefix: str) -> None:
    bucket = node_config(smallest(bucket={"url": url})).bucket
    assert bucket
    assert (bucket.bucket_name, bucket.prefix) == (name, prefix)


def test_a_coordinator_is_read_and_checked_likewise(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.yaml"
    path.write_text("listen: 127.0.0.1:19346\nlease: 2s\n")
    config = load_coordinator_config(path)
    assert (str(config.listen), config.lease, config.cluster) == ("127.0.0.1:19346", 2.0, "default")
    path.write_text("listen: 0.0.0.0:19346\n")
    with pytest.raises(ConfigError, match=r"coordinator\.yaml:1: listen: 0\.0\.0\.0:19346 is reached over a network"):
        load_coordinator_config(path)
    with pytest.raises(ConfigError, match="coordinator configuration: lease: 0 is too short"):
        coordinator_config({"listen": "127.0.0.1:1", "lease": 0})
    assert coordinator_config({"listen": "127.0.0.1:1", "lease": "2m"}).lease == 120.0
    with pytest.raises(ConfigError, match="coordinator configuration: lease: 600 s is too long: 120 s at most"):
        coordinator_config({"listen": "127.0.0.1:1", "lease": "10m"})


def test_only_what_the_file_calls_them_is_a_key(tmp_path: Path) -> None:
    assert node_config(smallest(encryptPeerTraffic=False)).encrypt_peer_traffic is False
    (found,) = complaints(tmp_path, SMALLEST + "encrypt_peer_traffic: false\n")
    assert "did you mean 'encryptPeerTraffic'?" in found
    assert NodeConfig.model_config["extra"] == "forbid"


def test_backups_are_made_always_or_as_often_as_is_said(tmp_path: Path) -> None:
    for text, every, steps in (("always", None, None), ("{every: 30min}", 1800.0, None), ("{steps: 100}", None, 100)):
        path = tmp_path / "node.yaml"
        path.write_text(SMALLEST + f"backup: {text}\nkeep: {{bucket: {{last: 3, weekly: 4}}}}\n")
        config = load_node_config(path)
        assert (config.backup.every, config.backup.steps) == (every, steps)
        assert (config.keep.bucket.last, config.keep.bucket.weekly) == (3, 4)


@pytest.mark.parametrize(
    ("text", "means"), [("auto", "auto"), ("on", "on"), ("off", "off"), ("'on'", "on"), ('"off"', "off")]
)
def test_passthrough_is_read_as_it_is_written_although_yaml_takes_on_and_off_for_booleans(
    tmp_path: Path, text: str, means: str
) -> None:
    assert load_node_config(written(tmp_path, f"{SMALLEST}passthrough: {text}\n")).passthrough == means


def test_a_value_may_name_a_variable_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "machine-7")
    monkeypatch.setenv("HOST_IP", "127.0.0.9")
    text = SMALLEST.replace("node: a", "node: ${NODE_NAME}")
    text = re.sub(r"127\.0\.0\.1:\d+", lambda found: f'"{found[0].replace("127.0.0.1", "${HOST_IP}")}"', text)
    config = load_node_config(written(tmp_path, text + "domain: {zone: '$${ZONE}', pool: 'a: ${NODE_NAME}'}\n"))
    assert (config.node, str(config.listen.control), str(config.listen.bulk)) == (
        "machine-7", "127.0.0.9:7460", "127.0.0.9:7461"
    )  # fmt: skip
    assert (config.domain.zone, config.domain.pool) == ("${ZONE}", "a: machine-7")


def test_a_variable_that_the_environment_lacks_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)
    monkeypatch.setenv("ZONE", "")
    assert complaints(tmp_path, SMALLEST.replace("node: a", "node: ${NODE_NAME}") + "domain: {zone: '${ZONE}'}") == [
        "node.yaml:1: node: the environment has no NODE_NAME: set it, or write $${NODE_NAME} to mean that",
        "node.yaml:5: domain.zone: the environment has no ZONE: set it, or write $${ZONE} to mean that",
    ]


def test_what_the_environment_gives_is_never_read_as_yaml_and_is_checked_like_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "a\nfsync: bucket")
    (found,) = complaints(tmp_path, SMALLEST.replace("node: a", "node: ${NODE_NAME}"))
    assert "is no name" in found
