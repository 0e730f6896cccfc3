"""Trains, and saves with safetensors to a directory: ``python train_safetensors.py DIRECTORY``.

A save writes all files to ``step_N.tmp``, then renames that to ``step_N``: what has the final name is whole. A start
goes on from the newest such step. Nothing here knows what the directory is.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from mlp import State, digest, initial_state, train_step
from safetensors.flax import load_file, save_file

_KEEP = 2


def save(directory: Path, step: int, state: State) -> None:
    """Appears as ``step_N`` with all its files, or not at all; then drops all but the newest steps."""
    unfinished = directory / f"step_{step}.tmp"
    unfinished.mkdir()
    for name, value in state.items():
        file = unfinished / f"{name}.safetensors"
        save_file({name: value}, file)
        _sync(file)
    unfinished.rename(directory / f"step_{step}")
    _sync(directory)
    for old in complete_steps(directory)[:-_KEEP]:
        shutil.rmtree(directory / f"step_{old}")


def load(directory: Path, step: int) -> State:
    """Reads all files of a step."""
    state: State = {}
    for file in sorted((directory / f"step_{step}").iterdir()):
        state |= load_file(file)
    return state


def complete_steps(directory: Path) -> list[int]:
    """The steps that have their final name, oldest first."""
    names = [path.name.removeprefix("step_") for path in directory.glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def main() -> None:
    """Trains up to the last step, from wherever the directory's content allows."""
    parser = argparse.ArgumentParser(description="Trains a small network; saves with safetensors.")
    parser.add_argument("directory", type=Path, help="where the checkpoints are and go")
    parser.add_argument("--steps", type=int, default=12, help="train up to this step")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--width", type=int, default=1536, help="48 times its square is the bytes of a save")
    options = parser.parse_args()

    for unfinished in options.directory.glob("step_*.tmp"):
        shutil.rmtree(unfinished)
    steps = complete_steps(options.directory)
    start = steps[-1] if steps else 0
    state = load(options.directory, start) if start else initial_state(options.width)
    print(f"start at step {start}", flush=True)
    for step in range(start + 1, options.steps + 1):
        state, loss = train_step(state, step)
        print(f"step {step}: loss {loss:.6f}", flush=True)
        if step % options.save_every == 0:
            save(options.directory, step, state)
    print(f"end at step {options.steps}: sha256 {digest(state)}", flush=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
