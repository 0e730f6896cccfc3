"""A process with a good certificate that serves as if it were another node, until it is ended.

Its arguments: a directory for what it is given, whom it plays, at which two addresses, and its three files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from fuse_tier.wire.tls import TlsFiles
from tests.wire.peers import running_peer


async def serve(*arguments: str) -> None:
    """It takes whatever is brought."""
    root, node, control, bulk, *files = arguments
    async with running_peer(
        Path(root), TlsFiles(*files), node=node, cluster="default", listen=(control, bulk)
    ) as peer:
        print(f"serving as {peer.node} at {peer.control}", flush=True)  # noqa: T201 - for who started it
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(serve, *sys.argv[1:])
