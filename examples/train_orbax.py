"""Trains, and saves with Orbax's CheckpointManager to a directory: ``python train_orbax.py DIRECTORY``.

Saves are asynchronous, which is the manager's default: training goes on while files are written. A start goes on
from the newest step that the manager finds. Nothing here knows what the directory is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import orbax.checkpoint as ocp
from mlp import digest, initial_state, train_step


def main() -> None:
    """Trains up to the last step, from wherever the directory's content allows."""
    parser = argparse.ArgumentParser(description="Trains a small network; saves with Orbax.")
    parser.add_argument("directory", type=Path, help="where the checkpoints are and go")
    parser.add_argument("--steps", type=int, default=12, help="train up to this step")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--width", type=int, default=1536, help="48 times its square is the bytes of a save")
    options = parser.parse_args()

    state = initial_state(options.width)
    rules = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=options.save_every)
    with ocp.CheckpointManager(options.directory.absolute(), options=rules) as manager:
        start = manager.latest_step() or 0
        if start:
            state = manager.restore(start, args=ocp.args.StandardRestore(state))
        print(f"start at step {start}", flush=True)
        for step in range(start + 1, options.steps + 1):
            state, loss = train_step(state, step)
            print(f"step {step}: loss {loss:.6f}", flush=True)
            manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    print(f"end at step {options.steps}: sha256 {digest(state)}", flush=True)


if __name__ == "__main__":
    main()
