"""Train for two steps on ranks that share a model, and save it as any job does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh

from examples._model import ModelShape, Trainer
from examples._state import add_up, checksums

if TYPE_CHECKING:
    from examples._ranks import Rank

__all__ = ["save"]

_FILES_PER_RANK = 2
_STEPS = 2


def save(rank: Rank, folder: str, shape: ModelShape) -> dict[str, Any]:
    """Train, save to ``folder``, and return what a load must give back.

    Returns:
        The loss of the saved model, the checksums of what was saved, how long saving took.
    """
    trainer = Trainer(shape, init_device_mesh("cpu", (rank.world,)), seed=1)
    for number in range(1, _STEPS + 1):
        rank.say(f"      step {number}: loss {trainer.step():.6f}")
    loss = trainer.evaluate()
    rank.say(f"      loss of the model that is saved: {loss:.6f}")
    state = trainer.state()
    parts = rank.gather(checksums(state, rank=rank.number))
    started_s = time.perf_counter()
    # Not synced to the disk: it is read back in a moment and then removed.
    writer = dcp.FileSystemWriter(folder, thread_count=_FILES_PER_RANK, sync_files=False)
    dcp.save(state, storage_writer=writer)
    seconds = time.perf_counter() - started_s
    return {"loss": loss, "checksums": add_up(parts), "seconds": seconds}
