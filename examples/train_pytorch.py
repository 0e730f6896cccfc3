"""Trains in several processes with PyTorch, and saves to a directory each: ``train_pytorch.py DIRECTORY``.

With ``--how file`` each process saves with ``torch.save``, with ``--how distributed`` by its distributed checkpoint;
a step gets its final name when it is whole. With ``--replicator`` the step to go on from is asked for by the file
protocol (docs/frameworks.md), else it is the newest that the directory has. Which process this is, of how many, is in
the environment, as torchrun writes it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.nn.parallel import DistributedDataParallel
from torch_mlp import digest, layers

State = dict[str, torch.Tensor]

_KEEP = 2
_PATIENCE_SECONDS = 300.0
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Saving:
    """How a step is saved, and what it is called: in a way that a replicator knows, or in one's own."""

    def __init__(self, directory: Path, job: str, *, in_a_file: bool, asks: bool) -> None:
        self._directory = directory
        self._job = job
        self._in_a_file = in_a_file
        self._asks = asks

    def _place(self, step: int) -> Path:
        if self._asks:
            return self._directory / (f"{self._job}-s{step}-n{RANK}-w0.save" if self._in_a_file else str(step))
        return self._directory / f"step_{step}"

    def save(self, step: int, state: State) -> None:
        """Appears whole, or not at all; then drops all but the newest steps."""
        place = self._place(step)
        unfinished = place.with_name(f"{place.name}.tmp")
        if self._asks and self._in_a_file:
            torch.save(state, unfinished)
        elif self._in_a_file:
            unfinished.mkdir()
            torch.save(state, unfinished / "state.pt")
        else:
            dcp.save(state, checkpoint_id=unfinished, no_dist=True)  # each process has a directory of its own
        unfinished.rename(place)
        for old in self.steps()[:-_KEEP]:
            _remove(self._place(old))

    def load(self, step: int, state: State) -> None:
        """Brings what is in ``state`` to what it was at a step."""
        place = self._place(step)
        if self._in_a_file:
            saved = torch.load(place if place.is_file() else place / "state.pt")
            for name, value in state.items():
                value.copy_(saved[name])
        else:
            dcp.load(state, checkpoint_id=place, no_dist=True)

    def steps(self) -> list[int]:
        """Those that have their final name, oldest first."""
        names = [path.name for path in self._directory.iterdir()]
        if self._asks and self._in_a_file:
            parts = [name.removeprefix(f"{self._job}-s").split("-")[0] for name in names if name.endswith(".save")]
        else:
            parts = [name if self._asks else name.removeprefix("step_") for name in names]
        return sorted(int(part) for part in parts if part.isdecimal())

    def begin(self) -> int:
        """The step to go on from; 0: from the start. What was not finished is removed."""
        if self._asks:
            return self._ask()
        for unfinished in self._directory.glob("step_*.tmp"):
            shutil.rmtree(unfinished)
        return max(self.steps(), default=0)

    def _ask(self) -> int:
        framework = "pytorch" if self._in_a_file else "pytorch.distributed"
        order = {
            "job-name": self._job,
            "framework": framework,
            "node-rank": RANK,
            "nodes": RANKS,
            "peers-per-node": 1,
            "backup-interval-minutes": 30,
        }
        temporary = self._directory / "replicator.yaml.tmp"
        temporary.write_text("".join(f"{key}: {value}\n" for key, value in order.items()))
        temporary.rename(self._directory / "replicator.yaml")
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not (markers := sorted(self._directory.glob(f"{self._job}-s*-n{RANK}-w0.restore"))):
            failed = self._directory / "replicator.failed"
            if failed.exists() or time.monotonic() > give_up:
                raise SystemExit(failed.read_text() if failed.exists() else "the replicator did not answer")
            time.sleep(0.05)
        (marker,) = markers
        step = int(marker.name.removeprefix(f"{self._job}-s").split("-")[0])
        if step == 0 and marker.is_file() and marker.stat().st_size == 0:
            marker.unlink()
            return 0
        marker.rename(self._place(step))
        return step


def main() -> None:
    """Trains up to the last step, from the one that the directory or its replicator gives."""
    parser = argparse.ArgumentParser(description="Trains a small network with PyTorch.")
    parser.add_argument("directory", type=Path, help="this process's: where its checkpoints are and go")
    parser.add_argument("--how", choices=["file", "distributed"], default="file")
    parser.add_argument("--replicator", action="store_true", help="ask for the step by the file protocol")
    parser.add_argument("--job", default="train-pytorch", help="the name of the job, the same in all processes")
    parser.add_argument("--steps", type=int, default=12, help="train up to this step")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--width", type=int, default=1536, help="24 times its square is the bytes of a save")
    options = parser.parse_args()
    saving = Saving(options.directory, options.job, in_a_file=options.how == "file", asks=options.replicator)

    torch.set_num_threads(1)  # sums are added up in one order only
    torch.manual_seed(0)
    width = options.width
    model = layers(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():  # so that there is a state to load into
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def state() -> State:
        found: State = {}
        for name, parameter in model.named_parameters():
            found[f"weight.{name}"] = parameter.detach()
            found[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
        return found

    start = saving.begin()
    if start:
        saving.load(start, state())
    if RANKS > 1:
        dist.init_process_group("gloo")
    parallel = DistributedDataParallel(model) if RANKS > 1 else model
    print(f"start at step {start}", flush=True)
    for step in range(start + 1, options.steps + 1):
        torch.manual_seed(step * RANKS + RANK)
        inputs = torch.randn(16, width)
        loss = torch.nn.functional.mse_loss(parallel(inputs), inputs.roll(1, dims=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.6f}, sha256 {digest(model)}", flush=True)
        if step % options.save_every == 0:
            saving.save(step, state())
    print(f"end at step {options.steps}: sha256 {digest(model)}", flush=True)
    if RANKS > 1:
        dist.destroy_process_group()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    main()
