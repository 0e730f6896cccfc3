"""How the values of ``standing.py`` travel in ``control.proto``."""

from __future__ import annotations

from collections.abc import Iterable

from fuse_tier.errors import InvalidRequest
from fuse_tier.identity import is_name
from fuse_tier.standing import TIERS, Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.restarts import parse_job, parse_step, parse_time

_MOST_BYTES = (1 << 64) - 1  # of what nodes say of their parts the sum may be more


def standing_to_wire(standing: Standing) -> pb.Standing:
    """One complete checkpoint."""
    return pb.Standing(
        job=str(standing.job),
        run=standing.run,
        ranks=standing.ranks,
        step=standing.step,
        created_ns=standing.created_ns,
        bytes=min(standing.size, _MOST_BYTES),
        tiers=standing.tiers,
        bad=standing.is_bad,
    )


def standings_from_wire(messages: Iterable[pb.Standing]) -> tuple[Standing, ...]:
    """Raises InvalidRequest."""
    return tuple(map(_standing_from_wire, messages))


def _standing_from_wire(message: pb.Standing) -> Standing:
    if not is_name(message.run):
        raise InvalidRequest(f"{message.run!r} is no run")
    return Standing(
        parse_job(message.job),
        message.run,
        message.ranks,
        parse_step(message.step) if message.HasField("step") else None,
        parse_time(message.created_ns),
        message.bytes,
        tuple(tier for tier in TIERS if tier in message.tiers),
        message.bad,
    )
