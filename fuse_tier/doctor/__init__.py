"""Looks at everything that a node needs before it is needed, and says how to mend what is not as it should be.

Changes nothing that stays, but for mounts that hang, on request: a mount of an empty directory and an object in the
bucket are made and taken away again. Each part looks at one thing and never fails: what goes wrong is a finding.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from fuse_tier.config import BucketConfig, NodeConfig
from fuse_tier.deadlines import Deadline
from fuse_tier.doctor import bucket, certificates, clock, connections, machine, peers
from fuse_tier.doctor.finding import Finding, State

__all__ = ["Finding", "State", "examine"]

_Part = Callable[[], Awaitable[list[Finding]]]


async def examine(
    config: NodeConfig | None, bucket_config: BucketConfig | None = None, *, abort_stuck: bool = False
) -> list[Finding]:
    """What was found, in an order that does not depend on what answers first.

    ``abort_stuck`` ends connections of our mounts on which nobody answers.
    Without a node's configuration the machine alone is looked at, and a bucket if one is given.
    """
    kept_in = bucket_config or (config.bucket if config else None)
    ram = config.ram if config else None
    passthrough = config.passthrough if config else "auto"
    look_at_connections = partial(connections.examine, ram.path if ram else None, abort=abort_stuck)
    parts: list[tuple[str, _Part]] = [
        ("machine", lambda: trio.to_thread.run_sync(machine.examine, ram, passthrough)),
        ("connections", lambda: trio.to_thread.run_sync(look_at_connections)),
    ]
    if config is not None:
        node = config
        parts.append(("tls", lambda: trio.to_thread.run_sync(certificates.examine, node)))
        parts.append(("peers", lambda: peers.examine(node)))
    ahead: list[float] = []
    if kept_in is not None:
        place = kept_in
        parts.append(("bucket", lambda: bucket.examine(place, ahead)))
    found: dict[str, list[Finding]] = {}

    async def look(name: str, part: _Part) -> None:
        with trio.move_on_after(Deadline.DOCTOR):
            found[name] = await part()
            return
        found[name] = [
            Finding.failed(name, f"no answer within {Deadline.DOCTOR:g} s", "see what hangs, and try again")
        ]

    async with trio.open_nursery() as nursery:
        for name, part in parts:
            nursery.start_soon(look, name, part)
    ordered = [finding for name, _ in parts for finding in found[name]]
    return [*ordered, clock.examine(ahead[0] if ahead else None)]
