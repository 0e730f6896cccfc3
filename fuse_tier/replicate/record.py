"""What a node remembers of a volume's live tree: whose it is, and up to which snapshot it has come.

One small file beside the tree, replaced at once. Everything else about a volume is derived.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass

import structlog

from fuse_tier.errors import ConfigError
from fuse_tier.manifest import Lineage
from fuse_tier.ram.layout import VolumeLayout

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """The lineage of a live tree, and the highest snapshot number that it was made from or that was taken of it.

    ``superseded`` names who went on with the volume meanwhile; empty: nobody. ``epoch`` is that under which this node
    last owned the volume.
    """

    lineage: Lineage
    number: int
    superseded: str = ""
    epoch: int = 0


def read_record(volume: VolumeLayout) -> TreeRecord | None:
    """None when there is no usable tree."""
    try:
        with open(volume.record, encoding="ascii") as file:
            fields = json.load(file)
        lineage = Lineage(fields["run"], fields["owner_uid"], fields["world_size"], fields["topology"])
        return TreeRecord(
            lineage, int(fields["number"]), str(fields.get("superseded", "")), int(fields.get("epoch", 0))
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        log.error("volume.record_unreadable", path=volume.record, reason=str(error))
        return None


def write_record(volume: VolumeLayout, record: TreeRecord) -> None:
    """Replaces the record at once."""
    temporary = f"{volume.record}.{secrets.token_hex(4)}"
    lineage = record.lineage
    with open(temporary, "x", encoding="ascii") as file:
        json.dump(
            {
                "run": lineage.run,
                "owner_uid": lineage.owner_uid,
                "world_size": lineage.world_size,
                "topology": lineage.topology,
                "number": record.number,
                "superseded": record.superseded,
                "epoch": record.epoch,
            },
            file,
        )
    os.rename(temporary, volume.record)
