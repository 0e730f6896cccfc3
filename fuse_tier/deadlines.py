"""Every wait of fuse-tier, in one table: how long, and what it waits for in turn.

What waits on another waits longer, so that the error that a person sees names the wait that really ran out.
``check_order`` holds the table to that, at each start. Not here: what a configuration sets (``drain``, ``settle``,
``lease``). Nothing here waits: callers do, with ``trio.fail_after`` and the like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fuse_tier.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Wait:
    """One row: a name, its seconds, and the names of those that may run out within it, one after another."""

    name: str
    seconds: float
    covers: tuple[str, ...] = ()


class Deadline:
    """Seconds, by name: ``Deadline.CONTROL_CALL``."""

    HOLD: Final = 2.0  # a daemon keeps changes of its volume back at most so long
    HOLD_LONGER: Final = 30.0  # the same, of one that is so large, or so busy, that it could not be read within that
    ROOM: Final = 2.0  # a create that waits for others to give up room; then it goes on with what there is
    ROOM_CALL: Final = 13.0  # one answer about room, the start of a worker in place of one that was lost included
    ROOM_COMING: Final = 660.0  # a write that finds no room, while content is on its way to the bucket
    CONTROL_CONNECT: Final = 3.0  # TCP and TLS of a control connection
    CONTROL_CALL: Final = 5.0  # one unary control call, its connection included
    LEASE: Final = 120.0  # the longest that can be configured: a coordinator that starts waits for one of before
    SILENCE: Final = 300.0  # the next message of a stream on which each is answered: reports come in a lease
    API_CALL: Final = 10.0  # one answer of Kubernetes' API server
    CHANNEL_CALL: Final = 5.0  # one call between processes of a node, a hold included
    SUPERVISOR_CONNECT: Final = 10.0  # from a process's start until it has its channel
    BULK_CONNECT: Final = 3.0  # TCP, TLS and token of a bulk stream
    BULK_STALL: Final = 20.0  # no byte moved on a bulk stream
    BULK_STALL_LONGEST: Final = 600.0  # the same, while room is made for a file, of 100 GB or however large it is
    RIGHTS: Final = 11.0  # whether a node may add a snapshot: others are asked who had its volume
    COPY: Final = 10.0  # a small snapshot gets to where a copy is missing; then another place is asked beside it
    MANIFEST_TRANSFER: Final = 40.0  # one manifest there or back, its verification included
    BUCKET_STALL: Final = 10.0  # no byte moved on a request to the bucket
    BUCKET_CALL: Final = 30.0  # a request to the bucket, or what is asked of it at once
    BUCKET_TOTAL: Final = 600.0  # one object there or back, tries included
    STEWARD: Final = 12.0  # another node's word on what the bucket lists; then the asker asks the bucket itself
    THREAD_SHUTDOWN: Final = 10.0  # a blocking call that was interrupted comes back
    METRICS_REQUEST: Final = 5.0  # one scrape
    HAND_OVER: Final = 3.0  # a keeper's successor takes over, for which a job waits; then the old one goes on
    DAEMON_START: Final = 35.0  # a daemon's start until a stat through the mount answers
    KERNEL_UNMOUNT: Final = 8.0  # the kernel takes a mount away, or says that it is in use
    DAEMON_STOP: Final = 15.0  # a daemon whose mount has gone ends
    CLAIM_BUSY: Final = 3.0  # an identity that another node may just be giving up
    RETURN: Final = 20.0  # a node comes back that has what no other has; then it is done without
    RESTART: Final = 22.0  # all ranks of a job agree on a step; then the mount is refused, and tried again
    MOUNT: Final = 60.0  # the supervisor's answer to a mount
    DETACH_TRY: Final = 2.0  # one of three tries to end a mount that may not be waited for: in order, aside, by force
    DETACH: Final = 7.0  # the supervisor's answer to a detach, whatever hangs
    ABANDON: Final = 30.0  # who still uses a mount that was detached is cut off, so that it can be mounted elsewhere
    STRANDED: Final = 600.0  # a mount waits so long for a driver that has gone from its node altogether
    TOPOLOGY: Final = 15.0  # a node learns its labels, before kubelet is told that nothing is known of them
    PROBE: Final = 6.0  # both of a node's processes say that they are there
    UNPUBLISH: Final = 9.5  # what kubelet waits for the end of a pod's volume
    PUBLISH: Final = 100.0  # a pod's volume is mounted, with the files that it had
    PUBLISH_ANSWER: Final = 118.0  # all of a publish; kubelet waits for two minutes
    UNMOUNT: Final = 30.0  # the supervisor's answer to an unmount
    MATERIALIZE: Final = 600.0 + 60.0  # an open of a file whose content is elsewhere
    SYNC: Final = 600.0 + 60.0  # an fsync that waits for a tier
    FRAMEWORK: Final = 1800.0  # a framework's workers get the files of the step that was chosen for them
    BEGIN_AGAIN: Final = 1830.0  # a container that was started again in its place may look at its files
    RESTORE: Final = 24 * 3600.0  # a whole volume; progress is what BULK_STALL and BUCKET_CALL watch
    VERIFY: Final = 24 * 3600.0  # everything on a tier
    DRAIN: Final = 24 * 3600.0  # an unmount whose own drain only the node's configuration knows
    RANKS: Final = 12.0  # a node's question for a rank is held so long while not all of the job have asked
    RANKS_CALL: Final = 16.0  # the answer to that
    STATUS: Final = 10.0  # what a person waits for an answer about a node
    DOCTOR: Final = 120.0  # all that the doctor looks at in one place
    LISTING: Final = 100.0  # a listing or a manifest, of all tiers
    HURRIED_STOP: Final = 3.0  # a process that was told a second time to end
    WORKER_STOP: Final = 60.0  # a worker's orderly end, beyond the configured drain
    NODE_STOP: Final = 120.0  # a node's orderly end, beyond the configured drain


def table() -> tuple[Wait, ...]:
    """The rows, each with what it covers."""
    covers: Mapping[str, tuple[str, ...]] = {
        "CONTROL_CALL": ("CONTROL_CONNECT",),
        "SILENCE": ("LEASE",),
        "CHANNEL_CALL": ("HOLD",),
        "HOLD_LONGER": ("HOLD",),
        "ROOM_CALL": ("ROOM", "SUPERVISOR_CONNECT"),
        "ROOM_COMING": ("BUCKET_TOTAL", "ROOM_CALL"),
        "BULK_STALL": ("BULK_CONNECT", "CONTROL_CALL"),
        "BULK_STALL_LONGEST": ("BULK_STALL",),
        "RIGHTS": ("CONTROL_CALL", "CONTROL_CALL"),
        "MANIFEST_TRANSFER": ("CONTROL_CALL", "BULK_STALL", "RIGHTS"),
        "BUCKET_TOTAL": ("BUCKET_CALL", "BUCKET_STALL"),
        "STATUS": ("CONTROL_CALL",),
        "DOCTOR": (
            "STATUS",
            "CONTROL_CALL",
            "CONTROL_CALL",
            "BULK_CONNECT",
            "BUCKET_CALL",
            "BUCKET_CALL",
            "BUCKET_CALL",
        ),
        "STEWARD": ("CONTROL_CALL",),
        "LISTING": ("MANIFEST_TRANSFER", "BUCKET_CALL", "CONTROL_CALL", "STEWARD", "STEWARD"),
        "DRAIN": ("SYNC", "UNMOUNT"),
        "DAEMON_START": ("SUPERVISOR_CONNECT", "CHANNEL_CALL", "HAND_OVER"),
        "DAEMON_STOP": ("THREAD_SHUTDOWN", "HURRIED_STOP"),
        "MOUNT": ("DAEMON_START", "KERNEL_UNMOUNT", "CHANNEL_CALL", "CONTROL_CALL"),
        "DETACH": ("DETACH_TRY", "DETACH_TRY", "DETACH_TRY"),
        "PROBE": ("CHANNEL_CALL",),
        "TOPOLOGY": ("PROBE", "CONTROL_CALL"),
        "UNPUBLISH": ("DETACH", "DETACH_TRY"),
        "RANKS_CALL": ("RANKS", "CONTROL_CONNECT"),
        "RESTART": ("RETURN",),
        "PUBLISH": ("RESTART", "MOUNT", "SUPERVISOR_CONNECT", "CHANNEL_CALL"),
        "PUBLISH_ANSWER": ("RANKS_CALL", "PUBLISH"),
        "UNMOUNT": ("KERNEL_UNMOUNT", "DAEMON_STOP", "CHANNEL_CALL"),
        "MATERIALIZE": ("BUCKET_TOTAL", "BULK_STALL"),
        "SYNC": ("BUCKET_TOTAL", "MANIFEST_TRANSFER", "CHANNEL_CALL"),
        "FRAMEWORK": ("RESTART", "MATERIALIZE", "BUCKET_TOTAL", "SUPERVISOR_CONNECT"),
        "BEGIN_AGAIN": ("FRAMEWORK", "SUPERVISOR_CONNECT", "CHANNEL_CALL"),
        "RESTORE": ("MANIFEST_TRANSFER", "BUCKET_TOTAL"),
        "VERIFY": ("MANIFEST_TRANSFER", "BUCKET_TOTAL"),
        "WORKER_STOP": ("UNMOUNT", "THREAD_SHUTDOWN"),
        "NODE_STOP": ("WORKER_STOP", "UNMOUNT"),
    }
    rows = tuple(
        Wait(name, seconds, covers.get(name, ()))
        for name, seconds in vars(Deadline).items()
        if name.isupper() and isinstance(seconds, float)
    )
    known = {row.name for row in rows}
    unknown = (set(covers) | {name for covered in covers.values() for name in covered}) - known
    if unknown:
        raise ConfigError(f"the table of deadlines names {', '.join(sorted(unknown))}, which are none")
    return rows


def violations(rows: tuple[Wait, ...]) -> Iterator[str]:
    """A sentence for each wait that is not longer than all that may run out within it together."""
    seconds = {row.name: row.seconds for row in rows}
    for row in rows:
        if row.seconds <= 0:
            yield f"{row.name} is {row.seconds:g} s: a wait must be longer than nothing"
        within = sum(seconds[name] for name in row.covers)
        if row.covers and row.seconds <= within:
            yield f"{row.name} is {row.seconds:g} s, but waits on {' and '.join(row.covers)}, {within:g} s"


def check_order() -> None:
    """Holds the table to its rule. Raises ConfigError with all that break it."""
    broken = list(violations(table()))
    if broken:
        raise ConfigError("deadlines out of order: " + "; ".join(broken))
