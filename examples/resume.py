"""Resume FSDP2 training: model, optimizer, scheduler and the place in the data of each rank.

    torchrun --nproc-per-node 2 examples/resume.py runs/demo --steps 4

trains from the newest checkpoint below ``runs/demo`` that can be read, and saves every second step.
Call it again with more steps, or damage a file of the newest checkpoint first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import paraload


class Batches:
    """The batches of one rank; its state is the number of those that were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __next__(self) -> torch.Tensor:
        """The next batch."""
        self.taken += 1
        seed = self.taken * dist.get_world_size() + dist.get_rank()
        return torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))

    def state_dict(self) -> dict[str, Any]:
        """How far this rank is. DCP saves one object of each name, so the name has the rank."""
        return {f"taken by rank {dist.get_rank()}": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch."""
        (self.taken,) = state.values()


class Training:
    """All that a checkpoint holds. ``dcp.save`` and ``paraload.load`` call the two methods."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=0.9)
        self.batches = Batches()
        self.steps = 0

    def step(self) -> float:
        """Train one step; the loss of this rank before it."""
        batch = next(self.batches)
        loss = nn.functional.mse_loss(self.model(batch), batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.steps += 1
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Shards of this rank, and plain objects."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "batches": self.batches.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned and a load has filled."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.scheduler.load_state_dict(state["scheduler"])
        self.batches.load_state_dict(state["batches"])
        self.steps = state["steps"]


def resume(training: Training, folder: Path) -> str:
    """Load the newest checkpoint that can be read; says which."""
    # One rank lists them: the others may see a file system that is behind.
    found: list[Any] = [sorted(folder.glob("step-*"), reverse=True)]
    dist.broadcast_object_list(found, src=0)
    for path in found[0]:
        try:
            paraload.load({"training": training}, path, progress=True)
        except paraload.CheckpointReadError as error:
            # All ranks are here, with the same error. The next load replaces all that this one
            # has filled.
            if dist.get_rank() == 0:
                print(f"{error}\nTrying the checkpoint before it", flush=True)
        else:
            return f"resumed from {path.name}"
    if found[0]:
        raise RuntimeError(f"no checkpoint below {folder} can be read")
    return "starting anew"


def main() -> None:
    """Resume, train, save."""
    parser = argparse.ArgumentParser(description="Train, and resume from the last checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    training = Training()
    how = resume(training, arguments.folder)
    if dist.get_rank() == 0:
        print(how, flush=True)
    while training.steps < arguments.steps:
        losses = [0.0] * dist.get_world_size()
        dist.all_gather_object(losses, training.step())
        if dist.get_rank() == 0:
            print(f"step {training.steps}, losses of the ranks {losses}", flush=True)
        if training.steps % 2 == 0:
            path = arguments.folder / f"step-{training.steps:06}"
            dcp.save({"training": training}, checkpoint_id=path)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
