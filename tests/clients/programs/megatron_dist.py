"""Megatron-core: ``dist_checkpointing`` of tensors that are split over ranks."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.msc_utils import MultiStorageClientFeature

from tests.clients.programs._common import main

PACKAGE, RANKS = "megatron-core", 2


def sharded(fill):
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)

    def split(name, *shape, dtype=torch.float32):
        data = torch.randn(*shape).to(dtype) if fill else torch.zeros(*shape, dtype=dtype)
        return ShardedTensor.from_rank_offsets(name, data, (0, rank, world))

    return {
        "rows": split("rows", 300, 70),
        "half": split("half", 64, 16, dtype=torch.bfloat16),
        "whole": ShardedTensor.from_rank_offsets(
            "whole", torch.full((33,), 3.0 * fill), replica_id=rank
        ),
        "object": ShardedObject("object", {"step": 7 * fill}, (world,), (rank,)),
    }


def save(folder):
    MultiStorageClientFeature.disable()
    Path(folder).mkdir(exist_ok=True)
    # Saving wants a GPU, which is not here; loading does not.
    with patch("torch.cuda.synchronize"), patch("torch.cuda.current_device", lambda: "cpu"):
        dist_checkpointing.save(sharded(fill=True), folder)


def load(folder):
    MultiStorageClientFeature.disable()
    return dist_checkpointing.load(sharded(fill=False), folder)


if __name__ == "__main__":
    main(save, load)
