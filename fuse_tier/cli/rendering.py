"""Answers of a node as tables for people and as facts for programs. No questions are asked here."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fuse_tier.cli.reporting import printable
from fuse_tier.manifest import Kind, quote
from fuse_tier.quantities import format_count, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from fuse_tier.manifest import Entry, Manifest
    from fuse_tier.wire import control_pb2 as pb

_PIPE_WIDTH = 10_000  # columns: nobody wraps what a program reads
_FILE_TYPES = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.HARDLINK: stat.S_IFREG,
}


def output() -> Console:
    """Stdout: of the terminal's width, or of any when it is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def print_out(view: RenderableType) -> None:
    """Writes to stdout; without the spaces that fill a table's last column."""
    console = output()
    if console.is_terminal:
        console.print(view)
        return
    with console.capture() as captured:
        console.print(view)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def snapshot_facts(snapshot: pb.Snapshot) -> dict[str, Any]:
    """What ``ls --json`` says of one."""
    identity, _, number = snapshot.id.rpartition("@")
    return {
        "id": snapshot.id,
        "identity": identity,
        "number": int(number),
        "run": snapshot.run,
        "files": snapshot.files,
        "bytes": snapshot.bytes,
        "created_ns": snapshot.created_ns,
        "node": snapshot.node,
        "tiers": list(snapshot.tiers),
        "step": snapshot.step if snapshot.HasField("step") else None,
        "older_steps": list(snapshot.older_steps),
        "set_aside": snapshot.set_aside,
    }


def snapshots_view(snapshots: Iterable[dict[str, Any]]) -> Table:
    """The table of ``ls``."""
    rows = [
        (
            fact["id"],
            fact["run"],
            _steps(fact),
            str(fact["files"]),
            format_size(fact["bytes"]),
            age(fact["created_ns"]),
            fact["node"],
            ",".join(fact["tiers"]) or "-",
        )
        for fact in snapshots
    ]
    return table(("SNAPSHOT", "RUN", "STEP", "FILES>", "SIZE>", "AGE>", "NODE", "TIERS"), rows)


def _steps(fact: dict[str, Any]) -> str:
    older = ", ".join(map(str, reversed(fact.get("older_steps", ()))))
    return (
        _count(fact.get("step"))
        + (f", also {older}" if older else "")
        + (" (set aside)" if fact.get("set_aside") else "")
    )


def status_view(facts: dict[str, Any]) -> Group:
    """What ``status`` shows."""
    queue, rates = facts["queue"], facts["rates"]
    head = f"node {facts['node']}, cluster {facts['cluster']}, version {facts['version']}"
    speeds = ", ".join(
        f"to {name} {format_rate(rates[key])}"
        for key, name in (("peer_bytes_per_second", "peers"), ("bucket_bytes_per_second", "the bucket"))
        if key in rates
    )
    tail = f"queue: {queue['copies']} to copy, {format_size(queue['bytes'])}{'; ' if speeds else ''}{speeds}"
    savings = ", ".join(
        f"{facts['deduplication'][tier]['factor']:.1f} to {name}"
        for tier, name in (("peer", "peers"), ("bucket", "the bucket"))
        if facts["deduplication"].get(tier, {}).get("factor")
    )
    if savings:
        tail += f"\nbytes named by copied snapshots for each byte sent: {savings}"
    volumes: RenderableType = _volumes(facts["volumes"]) if facts["volumes"] else Text("no volumes")
    passthrough = Text(printable(f"passthrough: {facts['passthrough']}"))
    charged = [
        Text(printable(f"{volume['identity']}: {format_size(size)} count against the job's own memory limit"))
        for volume in facts["volumes"]
        if (size := volume["unreserved_bytes"])
    ]
    return Group(
        Text(head, style="bold"), passthrough, "", _tiers(facts["tiers"]), "", volumes, *charged, "", Text(tail)
    )


def _tiers(tiers: Iterable[dict[str, Any]]) -> Table:
    rows = []
    for tier in tiers:
        reason = tier.get("reason")
        rows.append(
            (
                tier["tier"],
                tier["place"],
                _size(tier.get("capacity_bytes")),
                _size(tier.get("free_bytes")),
                _count(tier.get("snapshots")),
                f"{tier['state']}: {reason}" if reason else tier["state"],
            )
        )
    return table(("TIER", "PLACE", "SIZE>", "FREE>", "SNAPSHOTS>", "STATE"), rows)


def _volumes(volumes: Iterable[dict[str, Any]]) -> Table:
    rows = []
    for volume in volumes:
        newest, durable, peers = volume["newest"], volume["durable"], volume.get("peers") or {}
        on_peers = ", ".join(f"{name}: {number}" for name, number in sorted(peers.items()))
        rows.append(
            (
                volume["identity"],
                _mounted_at(volume),
                _newest(newest) + (", changed since" if volume["dirty"] else ""),
                _count(durable.get("ram")),
                f"{_count(durable.get('peer'))} ({on_peers})" if on_peers else _count(durable.get("peer")),
                _in_bucket(durable.get("bucket"), volume.get("backup")),
                str(volume["queue"]),
            )
        )
    return table(("VOLUME", "MOUNTED AT", "NEWEST", "RAM>", "PEER", "BUCKET>", "QUEUE>"), rows)


def _in_bucket(number: int | None, backup: dict[str, Any] | None) -> str:
    """The newest snapshot there, and what of the next one is there or when it will be begun."""
    text = _count(number)
    if backup and backup["state"] == "copying":
        moved, total = format_size(backup["moved_bytes"]), format_size(backup["total_bytes"])
        return f"{text} ({backup['snapshot']}: {moved} of {total})"
    if backup and backup["state"] == "waiting" and backup["due_in_seconds"]:
        return f"{text} (next in {format_duration(backup['due_in_seconds'])})"
    return text


def _mounted_at(volume: dict[str, Any]) -> str:
    if volume.get("failed"):
        return f"{volume['mountpoint']}: dead ({volume['failed']}); unmount it"
    return volume["mountpoint"] if volume["mounted"] else "-"


def _newest(newest: dict[str, Any] | None) -> str:
    if not newest:
        return "none"
    size, since = format_size(newest["bytes"]), age(newest["created_ns"])
    return f"{newest['number']} ({format_count(newest['files'], 'file')}, {size}, {since} ago)"


def verify_view(facts: dict[str, Any]) -> Table:
    """The table of ``verify``."""
    rows = [
        (
            entry["tier"],
            entry["place"],
            str(entry["snapshots"]),
            str(entry["blobs"]),
            format_size(entry["bytes"]),
            str(len(entry["damaged"])),
        )
        for entry in facts["tiers"]
    ]
    return table(("TIER", "PLACE", "SNAPSHOTS>", "BLOBS>", "BYTES>", "DAMAGED>"), rows)


def manifest_facts(manifest: Manifest) -> dict[str, Any]:
    """What ``show --json`` says. Names are in the manifest's percent-quoting: they need not be text."""
    return _header(manifest) | {"entries": [_entry_facts(entry) for entry in manifest.entries]}


def _header(manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.lineage
    return {
        "id": str(manifest.id),
        "run": lineage.run,
        "owner_uid": lineage.owner_uid,
        "world_size": lineage.world_size,
        "topology": lineage.topology,
        "node": manifest.node,
        "created": manifest.created,
        "created_ns": manifest.created_ns,
        "bytes": manifest.size,
    }


def _entry_facts(entry: Entry) -> dict[str, Any]:
    return {
        "path": quote(entry.path),
        "kind": entry.kind.value,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "size": entry.blob.size if entry.blob else None,
        "hash": entry.blob.digest.hex() if entry.blob else None,
        "target": None if entry.target is None else quote(entry.target),
    }


def manifest_view(manifest: Manifest) -> Group:
    """What ``show`` shows."""
    facts = _header(manifest) | {"bytes": format_size(manifest.size)}
    said = [(name.replace("_", " "), str(value)) for name, value in facts.items() if value and name != "created_ns"]
    rows = [
        (
            stat.filemode(_FILE_TYPES[entry.kind] | entry.mode) if entry.kind is not Kind.HARDLINK else "hard link",
            "-" if entry.blob is None else format_size(entry.blob.size),
            "-" if entry.kind is Kind.HARDLINK else _time(entry.mtime_ns),
            "-" if entry.blob is None else entry.blob.digest.hex(),
            _path(entry),
        )
        for entry in manifest.entries
    ]
    header = Table.grid(padding=(0, 2))
    for name, value in said:
        header.add_row(Text(name), Text(value))
    return Group(header, "", table(("MODE", "SIZE>", "MODIFIED", "XXH3-128", "PATH"), rows))


def _path(entry: Entry) -> str:
    path = _printable(entry.path) or "."
    return path if entry.target is None else f"{path} -> {_printable(entry.target)}"


def _printable(raw: bytes) -> str:
    """A name as it is, where it cannot steer a terminal; else quoted as in a manifest."""
    text = os.fsdecode(raw)
    return text if text.isprintable() else quote(raw)


def _time(nanoseconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(nanoseconds // 10**9))
    except (OverflowError, ValueError, OSError):
        return str(nanoseconds)


def age(created_ns: int) -> str:
    """How long ago that was, for people."""
    return format_duration(max(0, time.time_ns() - created_ns) / 1e9)


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Columns whose names end with ``>`` are flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in columns:
        right = name.endswith(">")
        table.add_column(name.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
