"""Which snapshots of a volume a tier gives up.

A pure decision about one volume on one tier; who carries it out drops the manifests and later collects the
blobs. The invariant: nothing older is given up before something newer is verified where it counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def plan_retention(
    listed: Mapping[int, str], keep: int, *, durable_elsewhere: Collection[int] = (), in_use: Collection[int] = ()
) -> tuple[int, ...]:
    """The numbers to give up, oldest first.

    ``listed`` are the snapshots that this tier lists, each with its run. Of a run before the newest snapshot's
    its last state stays: a workload that is made anew under an old name must not push out what the old one
    left. The rest is about the newest one's run. ``durable_elsewhere`` are those verified on a tier
    farther away, wherever it lists them now; empty when none is configured. ``in_use`` are being copied or
    restored.

    The newest ``keep`` stay (the newest always), and what is in use. So does the newest one that is durable
    elsewhere: until a newer one is there too, it is what would be left if this tier were lost, and a second
    source for it is worth its room. Those between it and the newest are superseded here and were never
    there: they go, because a tier that kept them would fill up while a bucket is down for an hour.
    """
    newest_first = sorted(listed, reverse=True)
    stay = set(in_use)
    runs: dict[str, list[int]] = {}
    for number in newest_first:
        runs.setdefault(listed[number], []).append(number)
    for index, numbers in enumerate(runs.values()):
        stay.update(numbers[: max(1, keep)] if index == 0 else numbers[:1])
    if durable_elsewhere:
        stay.add(max(durable_elsewhere))
    return tuple(number for number in reversed(newest_first) if number not in stay)
