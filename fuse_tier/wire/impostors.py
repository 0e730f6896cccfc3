"""Nodes that answer where another one was called: told and counted as those are who are turned away.

Which node a certificate is of it says by its common name and, as that cannot be asked for everywhere, by a DNS name.
"""

from __future__ import annotations

from typing import Final

from fuse_tier.errors import NotThatNode
from fuse_tier.wire.rejections import Rejections

_rejections: Final = Rejections("peer.impostor")


def note(node: str, address: str) -> NotThatNode:
    """Has it told, and gives the error that who called is to raise."""
    error = NotThatNode(
        f"TLS refused: {address} has a good certificate, but none of node {node}: if a node has just taken over that "
        "address this passes; else see which process is there"
    )
    _rejections.note("impostor", address, str(error))
    return error
