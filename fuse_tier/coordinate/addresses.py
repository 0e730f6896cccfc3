"""Where the coordinators of training jobs are, as the jobs' own tools told nodes. It keeps no truth of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class JobAddresses:
    """By the node that has it registered: it goes with that node's lease."""

    def __init__(self) -> None:
        self._of_node: dict[str, Mapping[str, str]] = {}

    def hear(self, node: str, addresses: Mapping[str, str]) -> None:
        """All that a node has registered; the latest that was told of a job counts."""
        if self._of_node.get(node, {}) != addresses:
            self._of_node.pop(node, None)
            if addresses:
                self._of_node[node] = addresses

    def forget(self, alive: Collection[str]) -> None:
        """Only these nodes hold a lease."""
        for node in self._of_node.keys() - set(alive):
            del self._of_node[node]

    def all(self) -> dict[str, str]:
        """By job."""
        return {job: address for found in self._of_node.values() for job, address in found.items()}

    def of(self, job: str) -> str:
        """Empty: nobody has registered one."""
        return next((found[job] for found in reversed(self._of_node.values()) if job in found), "")
