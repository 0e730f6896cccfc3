"""What people and programs get from a node, asked over its real socket."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.errors import IdentityBusy, TierUnavailable
from fuse_tier.wire import control_pb2 as pb
from tests.cli.conftest import CREATED_NS, SNAPSHOT, AskedNode, command, environment, run, running, status_facts

MOUNTED: dict[str, Any] = {
    "identity": "default/llama/0",
    "mountpoint": "/ckpt",
    "restored": {
        "snapshot": SNAPSHOT,
        "from": "peer b",
        "files": 8,
        "bytes": 1 << 30,
        "seconds": 0.8,
        "sources": {"peer b": 1 << 30},
        "unreadable": [],
        "coming": 0,
    },
}


def listed(number: int, *tiers: str) -> pb.Snapshot:
    return pb.Snapshot(
        id=f"default/llama/0@{number}",
        run="llama",
        files=8,
        bytes=3 << 20,
        created_ns=CREATED_NS,
        node="a",
        tiers=tiers,
    )


async def test_status_is_a_table_for_people(node: AskedNode) -> None:
    done = await run("status", "--node", node.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r" $", done.stdout, re.MULTILINE)
    lines = [re.sub(r"\s{2,}", "  ", line.strip()) for line in done.stdout.splitlines()]
    assert "node a, cluster default, version 0.1.0" in lines
    assert "passthrough: on" in lines
    assert "ram  ram of a  2 GiB  1 GiB  2  ok" in lines
    assert "bucket  gs://checkpoints/prefix  -  -  -  unavailable: connection refused?" in lines
    assert "default/llama/1  -  none  -  -  -  0" in lines
    (volume,) = (line for line in lines if line.startswith("default/llama/0  "))
    assert re.fullmatch(
        r"default/llama/0  /ckpt  12 \(8 files, 1 GiB, .* ago\), changed since  12  11 \(b: 11\)  -  2", volume
    )
    assert "default/llama/0: 5 MiB count against the job's own memory limit" in lines
    assert "queue: 2 to copy, 3 MiB; to peers 1.4 GiB/s, to the bucket 0 B/s" in lines
    assert "bytes named by copied snapshots for each byte sent: 2.4 to peers" in lines


def standing(step: int, *tiers: str, bad: bool = False) -> pb.Standing:
    told: dict[str, Any] = {"created_ns": CREATED_NS, "bytes": 3 << 20, "tiers": tiers, "bad": bad}
    return pb.Standing(job="default/llama", run="llama", ranks=2, step=step, **told)


async def test_status_of_a_job_is_its_complete_checkpoints(node: AskedNode) -> None:
    node.standings = [standing(30), standing(20, "ram", "peer", "bucket"), standing(10, "bucket", bad=True)]
    done = await run("status", "--node", node.socket, "--job", "default/llama")
    assert (done.returncode, done.stderr) == (0, "")
    assert node.requests == [pb.CheckpointsRequest(job="default/llama")]
    lines = [re.sub(r"\s{2,}", "  ", line.strip()) for line in done.stdout.splitlines()]
    assert lines[0] == "STEP  RUN  RANKS  COMPLETE ON  SIZE  AGE  RESTORABLE"
    for line, said in zip(
        lines[1:],
        (
            r"30  llama  2  -  3 MiB  .+  no: parts are on nodes that are away",
            r"20  llama  2  ram, peer, bucket  3 MiB  .+  yes",
            r"10  llama  2  bucket  3 MiB  .+  marked bad",
        ),
        strict=True,
    ):
        assert re.fullmatch(said, line)
    facts = json.loads((await run("status", "--node", node.socket, "--job", "default/llama", "--json")).stdout)
    assert [(one["job"], one["step"], one["tiers"], one["restorable"]) for one in facts] == [
        ("default/llama", 30, [], False),
        ("default/llama", 20, ["ram", "peer", "bucket"], True),
        ("default/llama", 10, ["bucket"], False),
    ]


async def test_status_of_a_job_that_has_no_complete_checkpoint_says_where_to_look(node: AskedNode) -> None:
    done = await run("status", "--node", node.socket, "--job", "default/llama")
    assert done.stdout == "no checkpoint of default/llama is complete: `fuse-tier ls` shows what each volume has\n"
    for wrong in (["--job", "llama"], ["--job", "default/llama", "--watch"]):
        assert (await run("status", "--node", node.socket, *wrong)).returncode == 2


async def test_status_is_json_for_programs(node: AskedNode) -> None:
    done = await run("status", "--json", FUSE_TIER_NODE=node.socket)
    assert json.loads(done.stdout) == status_facts()


async def test_status_is_watched_until_interrupted_also_while_the_node_is_away(
    node: AskedNode, short_directory: Path
) -> None:
    for socket, key in ((node.socket, "node"), (str(short_directory / "none.sock"), "error")):
        arguments = ("status", "--watch", "--json", "--interval", "10ms", "--node", socket)
        async with running(*arguments) as process:
            assert process.stdout
            received = b""
            with trio.fail_after(60):
                while received.count(b"\n") < 3:
                    received += await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            with trio.fail_after(60):
                assert await process.wait() == 130
        assert all(key in json.loads(line) for line in received.split(b"\n")[:3])


async def test_snapshots_are_listed_with_their_tiers(node: AskedNode) -> None:
    node.snapshots = [listed(11, "ram", "peer", "bucket"), listed(12)]
    done = await run("ls", "default/llama/0", "--node", node.socket)
    head, first, second = (re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines())
    assert head == ["SNAPSHOT", "RUN", "STEP", "FILES", "SIZE", "AGE", "NODE", "TIERS"]
    assert (first[:5], first[6:]) == (["default/llama/0@11", "llama", "-", "8", "3 MiB"], ["a", "ram,peer,bucket"])
    assert second[7] == "-"
    assert node.requests[0].identity == "default/llama/0"

    done = await run("ls", "--json", "--node", node.socket)
    assert json.loads(done.stdout)[0] == {
        "id": "default/llama/0@11",
        "identity": "default/llama/0",
        "number": 11,
        "run": "llama",
        "files": 8,
        "bytes": 3 << 20,
        "created_ns": CREATED_NS,
        "node": "a",
        "tiers": ["ram", "peer", "bucket"],
        "step": None,
        "older_steps": [],
        "set_aside": False,
    }


async def test_an_empty_list_says_so(node: AskedNode) -> None:
    assert (await run("ls", "--node", node.socket)).stdout == "there are no snapshots\n"
    assert (await run("ls", "a/b/c", "--node", node.socket)).stdout == "there is no snapshot of a/b/c\n"
    assert (await run("ls", "--json", "--node", node.socket)).stdout == "[]\n"


async def test_the_files_of_a_snapshot_are_shown_and_no_name_steers_the_terminal(node: AskedNode) -> None:
    done = await run("show", SNAPSHOT, "--node", node.socket)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = [re.sub(r"\s{2,}", "  ", line.strip()) for line in done.stdout.splitlines()]
    assert "world size  8" in lines
    assert "bytes  5 MiB" in lines
    assert "lrwxrwxrwx  -  1970-01-01 00:00:00  -  again -> weights.bin" in lines
    assert "prw-------  -  1970-01-01 00:00:00  -  evil%1B[2J" in lines
    assert "-rw-r--r--  5 MiB  2023-11-14 22:13:20  000102030405060708090a0b0c0d0e0f  first" in lines
    assert "hard link  -  -  -  second -> first" in lines
    assert f"-rwsr-xr-x  0 B  1970-01-01 00:00:00  {'0' * 32}  %FF" in lines

    facts = json.loads((await run("show", SNAPSHOT, "--json", "--node", node.socket)).stdout)
    assert (facts["id"], facts["run"], facts["owner_uid"], facts["topology"]) == (SNAPSHOT, "exp-7", "1234", "2x4")
    assert [entry["path"] for entry in facts["entries"]] == ["", "again", "evil%1B[2J", "first", "second", "%FF"]


async def test_what_the_node_refuses_is_one_line_in_its_own_words(node: AskedNode) -> None:
    done = await run("show", "a/b/c@1", "--node", node.socket)
    assert done.returncode == 1
    assert done.stderr == "fuse-tier: there is no snapshot a/b/c@1: fuse-tier ls lists what there is\n"
    node.error = IdentityBusy("default/llama/0 is mounted on b\x1b[2J: unmount it there")
    done = await run("mount", "--identity", "default/llama/0", "/ckpt", "--node", node.socket)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fuse-tier: default/llama/0 is mounted on b?[2J: unmount it there\n"


async def test_a_mount_says_what_it_restored_and_from_where(node: AskedNode, tmp_path: Path) -> None:
    node.facts = MOUNTED
    arguments = [
        "mount", "--node", node.socket, "--identity", "default/llama/0", "--run", "exp-7", "--owner-uid", "1234",
        "--world-size", "8", "--topology", "2x4", "--snapshot", "12", "--read-only", "ckpt",
    ]  # fmt: skip
    done = await trio.run_process(
        command(*arguments), capture_stdout=True, capture_stderr=True, cwd=tmp_path, env=environment()
    )
    assert done.stdout.decode() == (
        "default/llama/0 is mounted at /ckpt: snapshot 12 restored from peer b, 8 files, 1 GiB in 800 ms\n"
    )
    assert done.stderr == b""
    assert node.requests == [
        pb.MountRequest(
            identity="default/llama/0",
            mountpoint=str(tmp_path / "ckpt"),
            run="exp-7",
            owner_uid="1234",
            world_size=8,
            topology="2x4",
            snapshot=12,
            read_only=True,
        )
    ]
    node.facts = MOUNTED | {"restored": MOUNTED["restored"] | {"coming": 3 << 28}}
    at_once = await run("mount", "--node", node.socket, "--identity", "default/llama/0", "/ckpt")
    assert at_once.stdout == (
        "default/llama/0 is mounted at /ckpt: snapshot 12, 8 files, of which 768 MiB are coming from peer b, what is "
        "opened first\n"
    )
    node.facts = MOUNTED | {"restored": None}
    plain = await run("mount", "--node", node.socket, "--identity", "default/llama/0", "/ckpt")
    assert plain.stdout == "default/llama/0 is mounted at /ckpt: nothing had to be restored\n"
    assert plain.stderr == ""
    as_json = await run("mount", "--json", "--node", node.socket, "--identity", "default/llama/0", "/ckpt")
    assert json.loads(as_json.stdout) == node.facts


async def test_a_mount_names_the_files_that_no_tier_has_intact(node: AskedNode) -> None:
    node.facts = MOUNTED | {"restored": MOUNTED["restored"] | {"unreadable": ["step/w\x1b"], "from": ""}}
    done = await run("mount", "--node", node.socket, "--identity", "default/llama/0", "/ckpt")
    assert done.returncode == 0
    assert ": snapshot 12 restored, 8 files" in done.stdout
    assert done.stderr == "fuse-tier: step/w?: no tier has its content intact: reading it gives an I/O error\n"


async def test_an_interrupted_mount_is_cancelled_at_the_node(node: AskedNode) -> None:
    node.hangs = True
    async with running("mount", "--node", node.socket, "--identity", "default/llama/0", "/ckpt") as process:
        with trio.fail_after(60):
            await node.asked.wait()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            await node.cancelled.wait()


async def test_a_node_that_ends_in_the_middle_is_no_success(node: AskedNode) -> None:
    node.finishes = False
    done = await run("restore", "--identity", "a/b/c", "--to", "/x", "--node", node.socket)
    assert done.returncode == 1
    assert done.stderr.startswith("fuse-tier: the node ended before it was done")
    node.error = TierUnavailable("no tier has it now: try again")
    done = await run("restore", "--identity", "a/b/c", "--to", "/x", "--node", node.socket)
    assert (done.returncode, done.stderr) == (1, "fuse-tier: no tier has it now: try again\n")


@pytest.fixture
def mounted(node: AskedNode, tmp_path: Path) -> Path:
    """A directory that carries what a mount's directories do."""
    os.setxattr(tmp_path, "user.fuse_tier.node", node.socket.encode())
    os.setxattr(tmp_path, "user.fuse_tier.identity", b"default/llama/0")
    return tmp_path


async def test_a_wait_asks_the_node_that_mounted_the_directory(node: AskedNode, mounted: Path) -> None:
    node.facts = {"identity": "default/llama/0", "snapshot": SNAPSHOT, "tier": "bucket", "seconds": 2.5}
    done = await run("wait", str(mounted), "--tier", "bucket", "--timeout", "90", FUSE_TIER_NODE="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "default/llama/0: snapshot 12 is on bucket after 2.5 s\n"
    assert node.requests == [pb.WaitRequest(identity="default/llama/0", tier="bucket", timeout_seconds=90)]
    done = await run("wait", str(mounted), "--tier", "bucket", "--timeout", "5m", "--json")
    assert json.loads(done.stdout) == node.facts
    assert node.requests[1].timeout_seconds == 300
    node.facts = node.facts | {"snapshot": None}
    done = await run("wait", str(mounted), "--tier", "bucket")
    assert done.stdout == "default/llama/0: nothing was written yet, so nothing is missing on bucket\n"


async def test_an_unmount_says_where_the_newest_snapshot_is(node: AskedNode, mounted: Path) -> None:
    done = await run("unmount", str(mounted))
    assert done.stdout == f"default/llama/0 is unmounted from {mounted}; there is no snapshot of it\n"
    assert node.requests == [pb.UnmountRequest(mountpoint=str(mounted), drain_seconds=-1)]
    node.newest = listed(12, "ram", "peer")
    done = await run("unmount", str(mounted), "--drain", "2s")
    assert done.stdout.endswith("; its newest snapshot 12 is on ram, peer\n")
    assert node.requests[1].drain_seconds == 2
    done = await run("unmount", str(mounted), "--json")
    assert json.loads(done.stdout)["newest"]["tiers"] == ["ram", "peer"]


async def test_a_restore_says_what_came_from_where(node: AskedNode, tmp_path: Path) -> None:
    node.facts = {
        "snapshot": SNAPSHOT,
        "to": str(tmp_path),
        "files": 8,
        "bytes": 3 << 20,
        "seconds": 0.5,
        "sources": {"ram of a": 1 << 20, "peer b": 2 << 20},
    }
    done = await run("restore", "--identity", "default/llama/0", "--to", str(tmp_path), "--node", node.socket)
    first, *sources = done.stdout.splitlines()
    assert first.startswith(f"default/llama/0: snapshot 12 restored to {tmp_path}: 8 files, 3 MiB in ")
    assert sources == ["  1 MiB from ram of a", "  2 MiB from peer b"]
    assert node.requests == [pb.RestoreRequest(identity="default/llama/0", to=str(tmp_path))]


async def test_verify_lists_damage_and_ends_with_1(node: AskedNode) -> None:
    tier: dict[str, Any] = {"tier": "ram", "place": "ram of a", "snapshots": 2, "blobs": 9, "bytes": 3 << 20}
    node.facts = {"tiers": [tier | {"damaged": []}]}
    done = await run("verify", "--tier", "ram", "--node", node.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.split(r"\s{2,}", done.stdout.splitlines()[1].strip()) == ["ram", "ram of a", "2", "9", "3 MiB", "0"]
    assert node.requests == [pb.NodeVerifyRequest(tier="ram")]
    node.facts = {"tiers": [tier | {"damaged": ["default/llama/0@12: weights\x1b.bin: it is cut short"]}]}
    for arguments in ([], ["--json"]):
        done = await run("verify", *arguments, "--node", node.socket)
        assert done.returncode == 1
        assert done.stderr == "fuse-tier: damage in ram of a: default/llama/0@12: weights?.bin: it is cut short\n"


async def test_a_terminal_gets_a_progress_bar_on_stderr(node: AskedNode) -> None:
    node.facts = {"tiers": []}
    node.hangs = True
    master, slave = pty.openpty()
    seen = b""
    try:
        async with running("verify", "--node", node.socket, stderr=slave, TERM="xterm", COLUMNS="120") as process:
            os.close(slave)
            with trio.fail_after(60):
                while b"1.0/4.0 MiB" not in seen:
                    seen += await trio.to_thread.run_sync(os.read, master, 4096)
            process.send_signal(signal.SIGINT)
            with trio.fail_after(60):
                assert await process.wait() == 130
    finally:
        os.close(master)
    assert b"restoring from peer b" in seen
