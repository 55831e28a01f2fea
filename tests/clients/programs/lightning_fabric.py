"""Lightning Fabric: ``save`` and ``load`` of an FSDP2 model with ``ModelParallelStrategy``."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from tests.clients.programs._common import made, main, stepped

PACKAGE, RANKS = "lightning", 2


def sharded(model, mesh):
    return fully_shard(model, mesh=mesh["data_parallel"])


def set_up(seed):
    strategy = ModelParallelStrategy(sharded, data_parallel_size=2, tensor_parallel_size=1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = fabric.setup_module(made(seed))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters()))
    return fabric, model, optimizer


def save(folder):
    fabric, model, optimizer = set_up(0)
    stepped(model, optimizer)
    fabric.save(folder, {"model": model, "optimizer": optimizer, "step": 7})


def load(folder):
    fabric, model, optimizer = set_up(1)
    stepped(model, optimizer)
    state = {"model": model, "optimizer": optimizer, "step": 0}
    fabric.load(folder, state)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": state["step"],
    }


if __name__ == "__main__":
    main(save, load)
