"""torchtune: its ``DistributedCheckpointer`` with an FSDP2 model."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import fully_shard
from torchtune.training.checkpointing import DistributedCheckpointer

from tests.clients.programs._common import made, stepped

PACKAGE, RANKS = "torchtune", 2


def state_of(seed):
    model = fully_shard(made(seed))
    optimizer = torch.optim.AdamW(model.parameters())
    stepped(model, optimizer)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3 - seed}


def save(folder):
    DistributedCheckpointer(folder, folder).save_checkpoint(state_of(0), epoch=0)


def load(folder):
    return DistributedCheckpointer(folder, folder).load_checkpoint(state_of(1))
