"""Trains with Lightning, and has its ModelCheckpoint save to a directory: ``train_lightning.py DIRECTORY``.

Lightning writes a checkpoint to a temporary file and moves it to its final name. From another file system that is a
copy, which a crash can cut; so the temporary files are in the directory, too. Of a job of several nodes each one
saves, for each has a directory of its own, under the same path everywhere. A start takes the newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from torch_mlp import digest, layers


class OnEachNode(DDPStrategy):
    """Saves on each node, rather than on the first alone, in a directory that others do not see."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """By one process of the node."""
        if self.local_rank == 0:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Likewise."""
        if self.local_rank == 0:
            self.checkpoint_io.remove_checkpoint(filepath)


class Network(lightning.LightningModule):
    """Learns from data that follows from the step's number, so that every run sees the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self._loss = 0.0
        self._layers = layers(width)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """One step."""
        torch.manual_seed((self.global_step + 1) * self.trainer.world_size + self.global_rank)
        inputs = torch.randn(16, self._width)
        loss = torch.nn.functional.mse_loss(self._layers(inputs), inputs.roll(1, dims=1))
        self._loss = loss.item()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """With a state of its own, which has to come back, too."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def on_train_start(self) -> None:
        """Says from where it goes on."""
        print(f"start at step {self.global_step}", flush=True)

    def on_train_batch_end(self, outputs: Any, batch: torch.Tensor, batch_idx: int) -> None:
        """Says what the step has left."""
        print(f"step {self.global_step}: loss {self._loss:.6f}, sha256 {digest(self)}", flush=True)


def main() -> None:
    """Trains up to the last step, from the newest one that the directory has."""
    parser = argparse.ArgumentParser(description="Trains a small network with Lightning.")
    parser.add_argument("directory", type=Path, help="where the checkpoints are and go")
    parser.add_argument("--steps", type=int, default=12, help="train up to this step")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--width", type=int, default=1536, help="24 times its square is the bytes of a save")
    options = parser.parse_args()

    unfinished = options.directory / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    tempfile.tempdir = str(unfinished)
    found = options.directory.glob("step_*.ckpt")
    newest = max(found, key=lambda path: int(path.stem.removeprefix("step_")), default=None)

    torch.set_num_threads(1)  # sums are added up in one order only
    torch.manual_seed(0)
    saving = ModelCheckpoint(
        dirpath=options.directory,
        filename="step_{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=options.save_every,
        save_top_k=2,
        monitor="step",
        mode="max",
    )
    nodes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=nodes,
        strategy=OnEachNode(process_group_backend="gloo") if nodes > 1 else "auto",
        use_distributed_sampler=False,
        max_steps=options.steps,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Network(options.width), DataLoader(range(10**6)), ckpt_path=newest)
    print(f"end at step {options.steps}", flush=True)


if __name__ == "__main__":
    main()
