"""Trains with the Trainer of Hugging Face, which saves to a directory: ``train_transformers.py DIRECTORY``.

The Trainer writes to ``checkpoint-N`` itself, file by file: who looks meanwhile, or after a crash, finds a part of it
under its final name. So it saves into another directory here, and a checkpoint gets its name when it is whole. Each
node of a job saves (``save_on_each_node``), for each has a directory of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch_mlp import digest, layers
from transformers import Trainer, TrainerCallback, TrainingArguments

UNFINISHED = "unfinished"


class Network(torch.nn.Module):
    """Learns from data that follows from a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.loss = 0.0
        self._layers = layers(width)

    def forward(self, seed: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of one batch."""
        generator = torch.Generator().manual_seed(int(seed[0]))
        inputs = torch.randn(16, self._width, generator=generator)
        loss = torch.nn.functional.mse_loss(self._layers(inputs), inputs.roll(1, dims=1))
        self.loss = loss.item()
        return {"loss": loss}


class Telling(TrainerCallback):
    """Says from where it goes on, and what each step has left."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """See TrainerCallback."""
        print(f"start at step {state.global_step}", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Network, **more: Any) -> None:
        """See TrainerCallback."""
        print(f"step {state.global_step}: loss {model.loss:.6f}, sha256 {digest(model)}", flush=True)


class NamingLast(Trainer):
    """Gives a checkpoint its name when all of its files are there."""

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(super()._get_output_dir(trial), UNFINISHED)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process of a node has written its part
        if self.args.should_save:  # one of each node
            name = f"checkpoint-{self.state.global_step}"
            os.rename(os.path.join(self._get_output_dir(trial), name), os.path.join(self.args.output_dir, name))
            for path in checkpoints(Path(self.args.output_dir))[: -self.args.save_total_limit]:
                shutil.rmtree(path)


def checkpoints(directory: Path) -> list[Path]:
    """All that there are, the newest last."""
    return sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def main() -> None:
    """Trains up to the last step, from the newest one that the directory has."""
    parser = argparse.ArgumentParser(description="Trains a small network with the Trainer of Hugging Face.")
    parser.add_argument("directory", type=Path, help="where the checkpoints are and go")
    parser.add_argument("--steps", type=int, default=12, help="train up to this step")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--width", type=int, default=1536, help="24 times its square is the bytes of a save")
    options = parser.parse_args()

    shutil.rmtree(options.directory / UNFINISHED, ignore_errors=True)  # what a crash has cut
    newest = checkpoints(options.directory)[-1:]
    torch.set_num_threads(1)  # sums are added up in one order only
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(options.directory),
        save_strategy="steps",
        save_on_each_node=True,
        save_steps=options.save_every,
        save_total_limit=2,
        max_steps=options.steps,
        per_device_train_batch_size=1,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        disable_tqdm=True,
    )
    numbers = [{"seed": number} for number in range(100_000)]
    trainer = NamingLast(Network(options.width), arguments, train_dataset=numbers, callbacks=[Telling()])
    trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
    print(f"end at step {options.steps}", flush=True)


if __name__ == "__main__":
    main()
