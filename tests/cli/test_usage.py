"""Bad usage and bad configurations: the status, one line that says what to do, no traceback, nothing changed."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import fuse_tier
from fuse_tier.cli import commands
from tests.cli.conftest import command, environment, run

NAMES = sorted(commands.commands)


def test_all_commands_are_there() -> None:
    documented = "demo node coordinator mount unmount status ls show wait restore verify bench"
    assert sorted([*documented.split(), "prune", "doctor", "tls", "mark-bad", "export", "plan"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_a_command_does_and_gives_an_example(name: str) -> None:
    done = CliRunner().invoke(commands, [name, "--help"])
    assert done.exit_code == 0
    assert re.search(rf"Example:\n\s+fuse-tier {name}\b", done.stdout)


async def test_the_version_is_told() -> None:
    done = await run("--version")
    assert done.stdout == f"fuse-tier, version {fuse_tier.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fly"], "No such command 'fly'"),
        (["mount", "/x"], "Missing option '--identity'"),
        (["mount", "--identity", "a/b", "/x"], "must have three parts: NAMESPACE/WORKLOAD/REPLICA"),
        (["mount", "--identity", "a/../c", "/x"], "'..' is no valid part of an identity"),
        (["mount", "--identity", "a/b/c", "--world-size", "-1", "/x"], "-1 is not in the range"),
        (["show", "a/b/c"], "must look like NAMESPACE/WORKLOAD/REPLICA@NUMBER"),
        (["wait", "/x", "--tier", "tape"], "'tape' is not one of 'ram', 'peer', 'bucket'"),
        (["wait", "/x", "--tier", "ram", "--timeout", "soon"], "'soon' is no duration: write 30s, 5m or 24h"),
        (["restore", "--identity", "a/b/c", "--snapshot", "0", "--to", "/x"], "0 is not in the range"),
        (["export", "--job", "a/b/c", "--to", "/x"], "must have two parts: NAMESPACE/WORKLOAD"),
        (["export", "--job", "a/b", "--to", "/x", "--bucket", "gs://b", "--node", "s"], "--bucket asks no node"),
        (["node"], "Missing option '--config'"),
        (["ls", "a"], "must have three parts"),
    ],
)
def test_bad_usage_is_explained(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert done.stdout == ""


async def test_bad_usage_ends_the_process_with_2() -> None:
    done = await run("wait", "/x", "--tier", "tape")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'tape' is not one of" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_pattern_for_steps_that_is_none_is_refused_with_how_one_looks() -> None:
    done = await run("mount", "--identity", "default/llama/0", "--step-pattern", "model.pt", "/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "step pattern 'model.pt' has {step} 0 times, and not once" in done.stderr
    assert "such as model-{step}.pt" in " ".join(done.stderr.split())


@pytest.mark.parametrize("program", ["node", "coordinator"])
async def test_a_bad_configuration_is_explained_line_by_line_and_ends_with_2(program: str, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("listn: 127.0.0.1:1\nmetrics: 7\n")
    done = await run(program, "--config", str(config))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert f"fuse-tier: {config}:1: listn: is no known key: did you mean 'listen'?" in lines
    assert any(line.startswith(f"fuse-tier: {config}:2: metrics: 7 is no address") for line in lines)
    assert all(line.startswith("fuse-tier: ") for line in lines)
    assert list(tmp_path.iterdir()) == [config]


async def test_a_configuration_that_is_not_there_is_named() -> None:
    done = await run("node", "--config", "/nowhere/node.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fuse-tier: /nowhere/node.yaml: there is no such file")


@pytest.mark.parametrize("arguments", [["status"], ["ls"], ["show", "a/b/c@1"], ["verify"], ["unmount", "/nowhere"]])
async def test_without_a_node_it_is_said_which_socket_was_tried(arguments: list[str], short_directory: Path) -> None:
    socket = str(short_directory / "none.sock")
    done = await run(*arguments, FUSE_TIER_NODE=socket)
    assert done.returncode == 1
    assert done.stderr.startswith(f"fuse-tier: no node answers on {socket}: No such file or directory: start one")
    assert len(done.stderr.splitlines()) == 1


async def test_a_file_that_is_no_socket_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = await run("status", "--node", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"fuse-tier: {tmp_path}/file is no socket: ")


async def test_a_directory_that_is_no_mount_is_named(tmp_path: Path) -> None:
    done = await run("wait", str(tmp_path), "--tier", "ram")
    assert done.returncode == 1
    assert done.stderr.startswith(f"fuse-tier: {tmp_path} is no mounted volume")
    done = await run("wait", str(tmp_path / "none"), "--tier", "ram")
    assert "is no mounted volume (there is no such directory)" in done.stderr


async def test_certificates_are_made_once_and_their_keys_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    done = await run("tls", "init", str(directory), "--node", "a", "--node", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name}: {directory}/{name}.pem, {directory}/{name}.key" for name in "ab"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.glob("*.key")} == {0o600}
    before = {path: path.read_bytes() for path in directory.iterdir()}
    again = await run("tls", "init", str(directory), "--node", "a")
    assert again.returncode == 2
    assert again.stderr.startswith(f"fuse-tier: {directory}/ca.pem is there already")
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    further = await run("tls", "issue", str(directory), "--node", "c")
    assert further.returncode == 0
    assert (directory / "c.key").exists()


async def test_a_node_may_be_called_as_the_authoritys_files_are(tmp_path: Path) -> None:
    done = await run("tls", "init", str(tmp_path), "--node", "ca", "--node", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"ca: {tmp_path}/nodes/ca.pem, {tmp_path}/nodes/ca.key"
    assert (tmp_path / "ca.pem").read_bytes() != (tmp_path / "nodes" / "ca.pem").read_bytes()


@pytest.mark.parametrize("name", ["b/c", "a" * 65])
async def test_a_name_that_no_certificate_can_have_is_refused_before_anything_is_made(
    tmp_path: Path, name: str
) -> None:
    directory = tmp_path / "tls"
    done = await run("tls", "init", str(directory), "--node", "a", "--node", name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fuse-tier: {name!r} can not ")
    assert not directory.exists()
    done = await run("tls", "init", str(directory), "--node", "a")
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in directory.iterdir()}
    done = await run("tls", "issue", str(directory), "--node", "a", "--node", name)
    assert done.returncode == 2
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        command("--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(PYTHONUNBUFFERED="1")
    )
    assert process.stdout
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode in (0, 1, -signal.SIGPIPE)
