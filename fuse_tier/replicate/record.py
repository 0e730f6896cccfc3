"""What a node remembers of a volume's live tree: whose it is, and up to which snapshot it has come.

One small file beside the tree, replaced at once. Everything else about a volume is derived.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from fuse_tier.errors import ConfigError
from fuse_tier.manifest import Lineage
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.notes import replace
from fuse_tier.restarts import BranchPoint, Resumption

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """The lineage of a live tree, and the highest snapshot number that it was made from or that was taken of it.

    ``superseded`` names who went on with the volume meanwhile; empty: nobody. ``epoch`` is that under which this node
    last owned the volume. ``resumption`` is from what it went on with the other ranks of its job, if it did.
    ``user`` is who has it mounted, or had it last, for people. A tree that is tentative counts for nothing.
    """

    lineage: Lineage
    number: int
    superseded: str = ""
    epoch: int = 0
    resumption: Resumption | None = None
    user: str = ""
    is_tentative: bool = False


def read_record(volume: VolumeLayout) -> TreeRecord | None:
    """None when there is no usable tree."""
    try:
        with open(volume.record, encoding="ascii") as file:
            fields = json.load(file)
        lineage = Lineage(
            fields["run"],
            fields["owner_uid"],
            fields["world_size"],
            fields["topology"],
            int(fields.get("groups", 0)),
            int(fields.get("part", 0)),
            step_pattern=fields.get("step_pattern", ""),
        )
        return TreeRecord(
            lineage,
            int(fields["number"]),
            str(fields.get("superseded", "")),
            int(fields.get("epoch", 0)),
            _resumption(fields.get("resumption")),
            str(fields.get("user", "")),
            bool(fields.get("is_tentative", False)),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        log.error("volume.record_unreadable", path=volume.record, reason=str(error))
        return None


def _resumption(fields: dict[str, Any] | None) -> Resumption | None:
    if fields is None:
        return None
    return Resumption(
        str(fields["run"]),
        int(fields["restart"]),
        _step(fields["step"]),
        int(fields["epoch"]),
        str(fields.get("wish", "")),
        before=tuple(BranchPoint(int(one["epoch"]), _step(one["step"])) for one in fields.get("before", ())),
    )


def _step(value: Any) -> int | None:
    return None if value is None else int(value)


def write_record(volume: VolumeLayout, record: TreeRecord) -> None:
    """Replaces the record at once."""
    lineage = record.lineage
    fields = {
        "run": lineage.run,
        "owner_uid": lineage.owner_uid,
        "world_size": lineage.world_size,
        "topology": lineage.topology,
        "groups": lineage.groups,
        "part": lineage.part,
        "step_pattern": lineage.step_pattern,
        "number": record.number,
        "superseded": record.superseded,
        "epoch": record.epoch,
        "resumption": asdict(record.resumption) if record.resumption else None,
        "user": record.user,
        "is_tentative": record.is_tentative,
    }
    replace(volume.tier, volume.record, json.dumps(fields))
