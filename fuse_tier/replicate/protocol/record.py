"""What a node remembers of a job's order beside its tree, so that a worker that starts again goes on with the answer.

One small file, replaced at once; a new mount begins without.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

import structlog

from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.notes import replace
from fuse_tier.replicate.protocol.order import Order
from fuse_tier.replicate.tree import remove_tree

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """An order, and how far its answer has come.

    The first one since the mount goes on from the step that the mount has brought; each later one is of a job that
    was started again in its place, and asks anew. ``markers`` are named once all of them are staged: from then on
    there is nothing to do but to show them, which may have been done.
    """

    order: Order
    is_first: bool
    markers: tuple[str, ...] = ()
    is_answered: bool = False


def read(volume: VolumeLayout) -> OrderRecord | None:
    """None when there is none that can be used."""
    try:
        with open(volume.order, encoding="ascii") as file:
            fields = json.load(file)
        return OrderRecord(
            Order(**fields["order"]),
            bool(fields["is_first"]),
            tuple(map(str, fields["markers"])),
            bool(fields["is_answered"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.error("replicator.record_unreadable", path=volume.order, reason=str(error))
        return None


def write(volume: VolumeLayout, record: OrderRecord) -> None:
    """Replaces the record at once."""
    replace(volume.tier, volume.order, json.dumps(asdict(record)))


def forget(volume: VolumeLayout) -> None:
    """A new life begins: what an earlier one asked for is no matter of it."""
    with suppress(FileNotFoundError):
        os.unlink(volume.order)
    remove_tree(volume.staged)
    remove_tree(volume.swept)
