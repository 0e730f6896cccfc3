"""How one keeper gives its mount to another: an upgrade while a job writes.

The successor, a fresh process with the new code, visits the keeper's socket and asks. The keeper ends its daemon and
sends all that it has: /dev/fuse, the volume's lock, the socket where it is visited, the handshake, and every deposit.
The successor forks a daemon of its own, and when that stands ready, and not before, says ``taken``. To that the
keeper answers ``yours``, and ends; from there on the mount is the successor's. A successor that ends, or says nothing
for ``Deadline.HAND_OVER``, has lost the mount: the keeper closes the connection, and goes on with a new daemon.

Nobody reads a request of the kernel in between, so nothing is lost or done twice: those who use the mount wait.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import MountError
from fuse_tier.fs.mounting import MadeMount
from fuse_tier.fs.spec import MountSpec
from fuse_tier.mount.claim import Claim, Record
from fuse_tier.mount.deposits import Depositor, Safe
from fuse_tier.mount.device import Device
from fuse_tier.mount.messages import Handshake

log = structlog.get_logger(__name__)

FORM: Final = 1
"""Of what is said below. A keeper that knows another one refuses, and goes on."""
ASKED: Final = "hand_over"
LONGEST_MESSAGE: Final = 1 << 16
_TAKEN: Final = b"taken"
_YOURS: Final = b"yours"


@dataclass(frozen=True, slots=True)
class Estate:
    """All that a mount is kept with."""

    made: MadeMount
    claim: Claim
    listener: socket.socket | None
    """Where the keeper is visited, if anywhere."""
    safe: Safe
    generation: int
    told: tuple[int, ...]


def give(estate: Estate, successor: socket.socket) -> bool:
    """Sends all to a successor; says whether it has taken the mount. Closes the connection. Blocks."""
    safe = estate.safe
    with successor:
        successor.settimeout(Deadline.HAND_OVER)
        try:
            tell(estate, successor)
            answer = successor.recv(LONGEST_MESSAGE)
            if answer == _TAKEN:
                successor.send(_YOURS)
                log.info("mount.handed_over", deposits=len(safe.contents))
                return True
            reason = "it ended before it served"
        except OSError as error:
            reason = str(error)
    log.warning("mount.not_handed_over", reason=f"{reason}: the old keeper goes on")
    return False


def tell(estate: Estate, receiver: socket.socket) -> None:
    """Sends a copy of all to whom it concerns. Blocks as the connection does. Raises OSError."""
    made, safe, listener = estate.made, estate.safe, estate.listener
    if listener is None:
        raise ValueError("a keeper that nobody can visit has no successor")
    said = {
        "form": FORM,
        "handshake": asdict(made.handshake),
        "number": made.number,
        "reason": made.reason,
        "record": asdict(estate.claim.record),
        "generation": estate.generation,
        "told": estate.told,
        "highest_backing": safe.highest_backing,
        "deposits": len(safe.contents),
    }
    socket.send_fds(receiver, [json.dumps(said).encode()], [made.device.fd, estate.claim.fd, listener.fileno()])
    depositor = Depositor(receiver)
    for deposit, fd in safe.contents.values():
        depositor.leave(deposit, fd)


def take(spec: MountSpec) -> tuple[Estate, socket.socket]:
    """Asks the keeper that ``spec`` names for its mount; also gives the connection, for ``commit``. Blocks.

    Raises MountError; then the other one goes on.
    """
    path = spec.take_over or ""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(Deadline.HAND_OVER)
        connection.connect(path)
        _check(_read(connection)[0], spec)
        connection.send(json.dumps({ASKED: FORM}).encode())
        while "form" not in (answer := _read(connection))[0]:  # else a state, sent before it had read this
            pass
        return _inherit(*answer, connection), connection
    except (OSError, LookupError, TypeError, ValueError) as error:
        connection.close()
        raise MountError(f"{spec.mountpoint} could not be taken over from the keeper at {path}: {error}") from error


def commit(connection: socket.socket) -> bool:
    """Says that everything stands ready; whether the mount is ours now. Blocks."""
    with connection:
        try:
            connection.send(_TAKEN)
            return connection.recv(LONGEST_MESSAGE) == _YOURS
        except OSError:
            return False


def _read(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    message, fds, _, _ = socket.recv_fds(connection, LONGEST_MESSAGE, 3, socket.MSG_CMSG_CLOEXEC)
    if not message:
        raise ConnectionResetError("it has ended, or refuses: see its log")
    return dict(json.loads(message)), fds


def _check(state: dict[str, Any], spec: MountSpec) -> None:
    if (state["identity"], state["mountpoint"]) != (str(spec.identity), spec.mountpoint):
        raise ValueError(f"it has {state['identity']} at {state['mountpoint']}")


def _inherit(said: dict[str, Any], fds: list[int], connection: socket.socket) -> Estate:
    estate = read_estate(said, fds)
    estate.safe.take(connection, said["deposits"])
    return estate


def read_estate(said: dict[str, Any], fds: list[int]) -> Estate:
    """The first of what ``tell`` sends; deposits follow. Raises LookupError, TypeError, ValueError."""
    device, claim, listener = fds
    safe = Safe()
    safe.highest_backing = said["highest_backing"]
    made = MadeMount(Device(device), Handshake(**said["handshake"]), said["number"], said["reason"])
    return Estate(
        made,
        Claim(claim, Record(**said["record"])),
        socket.socket(fileno=listener),
        safe,
        said["generation"],
        tuple(said["told"]),
    )
