"""Trains in several processes, and saves with Orbax's ReplicatorCheckpointManager: ``train_replicator.py DIRECTORY``.

Each process has a part of every matrix, and saves only that, to its own directory: a mount whose replicator is asked
by the file protocol (docs/frameworks.md), as MaxText asks it. Which process this is stands in the directory's
``jax-init-info.txt``, written by whoever mounted it.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mlp import State, initial_state, train_step
from orbax.checkpoint.experimental.emergency.multi_tier_checkpointing import initialization
from orbax.checkpoint.experimental.emergency.replicator_checkpoint_manager import (
    ReplicatorCheckpointManager,
    ReplicatorCheckpointManagerOptions,
)


def main() -> None:
    """Trains up to the last step, from the one that the replicator gives to all processes."""
    parser = argparse.ArgumentParser(description="Trains a small network in several processes; saves with Orbax.")
    parser.add_argument("directory", type=Path, help="this process's mount")
    parser.add_argument("--job", default="train-replicator", help="the name of the job, the same in all processes")
    parser.add_argument("--steps", type=int, default=12, help="train up to this step")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--backup-every", type=int, default=4, help="steps between backups in the bucket")
    parser.add_argument("--width", type=int, default=512, help="48 times its square is the bytes of a save")
    options = parser.parse_args()
    directory = epath.Path(options.directory.absolute())
    flags.FLAGS.mark_as_parsed()  # Orbax looks at flags of its own when it restores

    initialization.initialize_multi_tier_checkpointing(
        directory, backup_interval_steps=options.backup_every, num_slices=1, run_name=options.job
    )
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    state = jax.device_put(initial_state(options.width), rows)
    rules = ReplicatorCheckpointManagerOptions(save_interval_steps=options.save_every)
    with ReplicatorCheckpointManager(directory, rules, global_mesh=mesh) as manager:
        start = manager.latest_step() or 0
        if start:
            how = ocp.args.PyTreeRestore(state, restore_args=ocp.checkpoint_utils.construct_restore_args(state))
            state = manager.restore(start, args=ocp.args.Composite(state=how))["state"]
        print(f"start at step {start}", flush=True)
        for step in range(start + 1, options.steps + 1):
            state, loss = train_step(state, step)
            print(f"step {step}: loss {loss:.6f}, sha256 {digest_here(state)}", flush=True)
            manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
        manager.wait_until_finished()
    print(f"end at step {options.steps}", flush=True)


def digest_here(state: State) -> str:
    """SHA-256 of what this process has of the parameters."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        for shard in sorted(state[name].addressable_shards, key=lambda shard: shard.device.id):
            sha.update(np.ascontiguousarray(shard.data))
    return sha.hexdigest()


if __name__ == "__main__":
    main()
