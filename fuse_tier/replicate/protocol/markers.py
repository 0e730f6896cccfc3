"""What of a snapshot becomes the markers that tell a framework's workers that their data is there. Pure.

A marker is the step's own content under another name: the directory of the step, or with ``pytorch`` the file that
the worker saved. The client renames it to what it calls the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fuse_tier.errors import RunMismatch
from fuse_tier.manifest import Entry, Kind, Manifest
from fuse_tier.protocolfiles import marker, step_in, worker_in
from fuse_tier.replicate.protocol.order import Order

_OF_FILES = "pytorch"  # the framework whose workers save a file each


def sources(manifest: Manifest, order: Order, step: int, *, is_own: bool = True) -> dict[str, bytes]:
    """For each worker's marker the name at the root of the snapshot that it is made of.

    One that is not the node's own is that of a node which holds the same state: what is below the name stays as
    that node has called it.

    Raises RunMismatch when the snapshot has the step's name, and not what the order wants of it: that is no damage,
    for which the step would be taken from all ranks, be the order mended or not.
    """
    tops = {entry.path: entry for entry in manifest.entries if entry.path and b"/" not in entry.path}
    if order.framework == _OF_FILES:
        files = [_file_of(manifest, order, step, worker, tops, is_own=is_own) for worker in range(order.workers)]
        return {marker(order.job, step, order.node_rank, worker): name for worker, name in enumerate(files)}
    # The shortest is the step's final name; a marker that nobody renamed is as good.
    found = sorted((len(name), name) for name, top in tops.items() if _is_tree(name, top, step))
    if not found:
        raise RunMismatch(f"{manifest.id} of step {step} has no directory of it: was it saved with 'pytorch'?")
    return {marker(order.job, step, order.node_rank, worker): found[0][1] for worker in range(order.workers)}


def _is_tree(name: bytes, top: Entry, step: int) -> bool:
    return top.kind is Kind.DIRECTORY and step_in(name) == step


def _file_of(
    manifest: Manifest, order: Order, step: int, worker: int, tops: dict[bytes, Entry], *, is_own: bool
) -> bytes:
    def is_wanted(name: bytes, top: Entry) -> bool:
        found = worker_in(name)
        if found is None or top.kind is not Kind.FILE or (found[0], found[2]) != (step, worker):
            return False
        return found[1] == order.node_rank if is_own else order.is_partner(found[1])

    for name, top in sorted(tops.items(), reverse=True):  # .save before .restore
        if is_wanted(name, top):
            return name
    has = sorted({found[1:] for name in tops if (found := worker_in(name)) is not None and found[0] == step})
    told = ", ".join(f"node {node} worker {one}" for node, one in has) or "nobody"
    raise RunMismatch(
        f"{manifest.id} of step {step} has no file of node {order.node_rank} worker {worker}, but of {told}: start "
        "the job with the ranks and the workers-per-node that it had"
    )


def marked(manifest: Manifest, chosen: dict[str, bytes]) -> tuple[Entry, ...]:
    """The entries of a tree that has the markers at its root; what several have in common are links of one file."""
    root = next(entry for entry in manifest.entries if not entry.path)
    entries = [replace(root, xattrs=())]
    seen: dict[bytes, bytes] = {}
    for name, source in sorted(chosen.items()):
        entries.extend(_renamed(manifest, source, name.encode(), seen))
    return tuple(entries)


def _renamed(manifest: Manifest, source: bytes, name: bytes, seen: dict[bytes, bytes]) -> Iterator[Entry]:
    for entry in manifest.entries:
        if entry.path != source and not entry.path.startswith(source + b"/"):
            continue
        path = name + entry.path[len(source) :]
        if entry.kind is Kind.HARDLINK:
            target = entry.target or b""
            first = seen.get(target)
            if first is None:  # its first name is outside of the step
                yield _first_name(manifest, target, path)
                seen[target] = path
            else:
                yield replace(entry, path=path, target=first)
        elif entry.kind is Kind.FILE and entry.path in seen:
            yield Entry(path, Kind.HARDLINK, target=seen[entry.path])
        else:
            if entry.kind is Kind.FILE:
                seen[entry.path] = path
            yield replace(entry, path=path)


def _first_name(manifest: Manifest, target: bytes, path: bytes) -> Entry:
    return replace(next(entry for entry in manifest.entries if entry.path == target), path=path)
