"""Free ports on loopback.

Taken below the range that the kernel gives to outgoing connections, so that a node that is started again
finds its own port free. Two processes may still choose one port at the same time: whoever starts something
on it has to be ready to choose again.
"""

from __future__ import annotations

import random
import socket

from fuse_tier.errors import FuseTierError

_RANGE = (20_000, 32_000)  # net.ipv4.ip_local_port_range begins at 32768
_TRIES = 1000


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens now."""
    found: set[int] = set()
    for _ in range(_TRIES):
        if len(found) == count:
            return list(found)
        port = random.randrange(*_RANGE)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
    raise FuseTierError(f"no {count} free ports between {_RANGE[0]} and {_RANGE[1]} on 127.0.0.1")
