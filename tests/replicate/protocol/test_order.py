"""What is read from replicator.yaml, and what is said of what cannot be."""

from __future__ import annotations

import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.errors import ConfigError
from fuse_tier.replicate.backup import BackupPolicy
from fuse_tier.replicate.protocol.order import Order, read_order

# As Orbax 0.12.8 writes it.
ORBAX = """job-name: llama
framework: orbax
assume-data-parallelism: 2
node-rank: 1
nodes: 4
peer-ranks: [3]
backup-interval-minutes: 30"""


def changed(**changes: object) -> bytes:
    keys = yaml.safe_load(ORBAX) | {key.replace("_", "-"): value for key, value in changes.items()}
    return yaml.safe_dump({key: value for key, value in keys.items() if value != "gone"}).encode()


def test_an_order_of_orbax_is_read() -> None:
    assert read_order(ORBAX.encode()) == Order("llama", "orbax", 1, 4, minutes=30, parallelism=2)


def test_an_order_of_a_pytorch_job_is_read() -> None:
    text = changed(
        framework="pytorch.distributed", peers_per_node=1, peer_ranks="gone", assume_data_parallelism="gone",
        workers_per_node=8, master_port=4243,
    )  # fmt: skip
    assert read_order(text) == Order("llama", "pytorch.distributed", 1, 4, workers=8, minutes=30)


def test_newer_clients_count_steps_between_backups() -> None:
    order = read_order(changed(backup_interval_minutes="gone", backup_interval_steps=100, node_rank=2, peer_ranks=[]))
    assert order.backups == BackupPolicy(steps=100)


def test_an_interval_of_no_minutes_means_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    last = {"node_rank": 3, "peer_ranks": [1]}
    assert read_order(changed(backup_interval_minutes=0, **last)).backups == BackupPolicy()
    assert read_order(changed(backup_interval_minutes=2, **last)).backups == BackupPolicy(every=120.0)
    monkeypatch.setenv("REPLICATION_WORKER_DEBUG_BACKUP", "true")
    assert read_order(changed(backup_interval_minutes=2, **last)).backups == BackupPolicy(steps="odd")


def test_of_groups_that_hold_the_same_the_last_one_backs_up() -> None:
    orders = [read_order(changed(node_rank=rank, peer_ranks=[])) for rank in range(4)]
    assert [order.backups.on_demand for order in orders] == [True, True, False, False]
    assert [[order.is_partner(rank) for rank in range(5)] for order in orders[:2]] == [
        [True, False, True, False, False],
        [False, True, False, True, False],
    ]
    alone = [read_order(changed(node_rank=rank, peer_ranks=[], assume_data_parallelism=1)) for rank in range(4)]
    assert [order.backups.on_demand for order in alone] == [False] * 4
    assert [order.is_partner(0) for order in alone] == [True, False, False, False]


def test_values_come_from_the_environment_and_numbers_may_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB", "from-outside")
    monkeypatch.setenv("RANK", "2")
    order = read_order(changed(job_name="${JOB}", node_rank="${RANK}", nodes="4"))
    assert (order.job, order.node_rank, order.nodes) == ("from-outside", 2, 4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (changed(node_rank=4), "replicator.yaml:5: node-rank: 4 is out of range: of 4 nodes the last is 3"),
        (changed(node_rank=-1), "node-rank: '-1' is too small: at least 0"),
        (changed(node_rank=1.5), "node-rank: '1.5' is wrong here: give a whole number"),
        (changed(node_rank=True), "node-rank: 'true' is wrong here: give a whole number"),
        (changed(node_rank="${NOBODY_SET_THIS}"), "the environment has no NOBODY_SET_THIS"),
        (changed(nodes=0), "nodes: '0' is too small: at least 1"),
        (changed(nodes="many"), "nodes: 'many' is wrong here: give a whole number"),
        (changed(framework="jax"), "framework: 'jax' is none of 'orbax', 'pytorch' or 'pytorch.distributed'"),
        (changed(job_name="../../etc/passwd"), "job-name: '../../etc/passwd' is no job's name"),
        (changed(job_name="a/b"), "job-name: 'a/b' is no job's name"),
        (changed(job_name="gone"), "job-name: is missing"),
        (changed(frmework="orbax"), "frmework: is no known key: did you mean 'framework'?"),
        (changed(peer_ranks=[9]), "peer-ranks: 9 is no other node's"),
        (changed(peer_ranks=[1]), "peer-ranks: 1 is no other node's"),
        (changed(peer_ranks=[2, 2]), "peer-ranks: a rank stands there twice"),
        (changed(backup_interval_steps=5), "give exactly one of backup-interval-minutes"),
        (changed(backup_interval_minutes="gone"), "give exactly one of backup-interval-minutes"),
        (changed(backup_interval_minutes=-5), "backup-interval-minutes: '-5' is too small"),
        (changed(assume_data_parallelism=3), "4 nodes are not 3 groups of one size"),
        (changed(workers_per_node=0), "workers-per-node: '0' is too small"),
        (changed(master_port=70000), "master-port: '70000' is too large"),
        (b"job-name: [", "replicator.yaml:1: is no valid YAML"),
        (b"- a\n- b\n", "replicator.yaml:1: is no list of keys and values"),
        (b"just text", "replicator.yaml:1: is no list of keys and values"),
        (b"job-name: a\njob-name: b\n", "replicator.yaml:2: job-name: stands here again, after line 1"),
        (b"job-name: !!python/object:os.system x\n", "has no meaning here"),
        (b"\xff\xfe\x00", "is no valid YAML"),
        (b"a: " + b"x" * (2 << 20), "is longer than"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_is_wrong_is_told_by_its_key(text: bytes, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_order(text)
    assert told in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_stands_there_is_read_or_refused(text: bytes) -> None:
    try:
        read_order(text)
    except ConfigError as error:
        assert str(error).startswith("replicator.yaml")
