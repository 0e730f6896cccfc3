"""A network of its own for each node of a cluster: namespaces, joined by a switch, whose wires can be cut.

Needs root. Invariant: when ``network`` is left, its namespaces are gone, and with them every wire. Nothing of the
machine's own network is touched but for one wire, so that the test itself reaches the coordinator.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache

from fuse_tier.localcluster import Host

_NOBODY = "02:00:00:00:00:01"  # an address that no wire has


class Network:
    """What ``network`` gives. Faults are by host; each lasts until ``heal``."""

    def __init__(self, prefix: str, subnet: str, names: Sequence[str]) -> None:
        self._prefix = prefix
        self._addresses = {name: f"{subnet}.{number}" for number, name in enumerate(names, 2)}
        self.hosts = {
            name: Host(address, ("nsenter", f"--net=/run/netns/{self._space(name)}", "--"))
            for name, address in self._addresses.items()
        }

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def build(self, own_address: str) -> None:
        """Makes the namespaces and the wires."""
        switch = self._space("switch")
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
        for number, (name, address) in enumerate(self._addresses.items()):
            space = self._space(name)
            _run("ip", "netns", "add", space)
            port = f"port{number}"
            _run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "wire", "netns", space)
            _run("ip", "-n", switch, "link", "set", port, "master", "switch", "up")
            for device in ("lo", "wire"):
                _run("ip", "-n", space, "link", "set", device, "up")
            _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "wire")
        own = self._prefix
        _run("ip", "-n", switch, "link", "add", "test", "type", "veth", "peer", "name", own)
        _run("ip", "-n", switch, "link", "set", own, "netns", str(os.getpid()))
        _run("ip", "-n", switch, "link", "set", "test", "master", "switch", "up")
        _run("ip", "link", "set", own, "up")
        _run("ip", "address", "add", f"{own_address}/24", "dev", own)

    def remove(self) -> None:
        """Takes everything away, however much of it there is."""
        for name in (*self._addresses, "switch"):
            subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._prefix], capture_output=True, check=False)

    # ---- faults ----

    def cut(self, name: str) -> None:
        """Nothing gets in or out."""
        self._ip(name, "link", "set", "wire", "down")

    def cut_one_way(self, name: str, other: str) -> None:
        """What ``name`` sends to ``other`` arrives nowhere; the other way round it does."""
        self._ip(
            name, "neigh", "replace", self._addresses[other], "lladdr", _NOBODY, "dev", "wire", "nud", "permanent"
        )

    def slow(self, name: str, rate: str) -> None:
        """What ``name`` sends goes at a rate such as ``2mbit``."""
        self._tc(name, "tbf", "rate", rate, "burst", "16kb", "latency", "200ms")

    def lose(self, name: str) -> None:
        """Much of what ``name`` sends is lost: every tenth packet, or, without netem, what comes in bursts."""
        if has_netem():
            self._tc(name, "netem", "loss", "10%")
        else:
            self._tc(name, "tbf", "rate", "50mbit", "burst", "4kb", "limit", "6kb")

    def heal(self, name: str) -> None:
        """Makes all wires of a host whole. By few processes: on a loaded machine each takes its time."""
        self._ip(name, "link", "set", "wire", "up")
        self._ip(name, "neigh", "flush", "dev", "wire", "nud", "permanent")
        with suppress(subprocess.CalledProcessError):  # there was none
            _run("tc", "-n", self._space(name), "qdisc", "del", "dev", "wire", "root")

    def _ip(self, name: str, *arguments: str) -> None:
        _run("ip", "-n", self._space(name), *arguments)

    def _tc(self, name: str, *discipline: str) -> None:
        _run("tc", "-n", self._space(name), "qdisc", "replace", "dev", "wire", "root", *discipline)


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """A network with a host for each name."""
    drawn = random.SystemRandom()
    subnet = f"198.18.{drawn.randrange(1, 255)}"  # for tests of networks (RFC 2544): nobody's own
    made = Network(f"ftt{drawn.randrange(1 << 24):06x}", subnet, names)
    try:
        made.build(f"{subnet}.1")
        yield made
    finally:
        made.remove()


@cache
def has_netem() -> bool:
    """Whether the kernel can lose packets for us."""
    with network(["probe"]) as probe:
        try:
            probe._tc("probe", "netem", "loss", "1%")
        except subprocess.CalledProcessError:
            return False
    return True


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
