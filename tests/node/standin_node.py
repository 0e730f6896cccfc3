"""A node with a stand-in worker, as a process: ``python -m tests.node.standin_node MODE CONFIG [KEEPER]``.

KEEPER is a program in Python that is run in the place of a keeper.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from fuse_tier import logs
from fuse_tier.config import load_node_config
from fuse_tier.errors import FuseTierError
from fuse_tier.node.supervisor import Programs, run_node


def main(mode: str, config_path: str, keeper: str = "") -> int:
    config = load_node_config(config_path)
    logs.configure("supervisor", config.node)
    worker = (sys.executable, str(Path(__file__).with_name("standin_worker.py")), mode)
    try:
        programs = Programs(worker, (sys.executable, "-c", keeper)) if keeper else Programs(worker)
        trio.run(run_node, config, config_path, programs)
    except FuseTierError as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
