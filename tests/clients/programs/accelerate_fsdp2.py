"""accelerate: ``save_state`` and ``load_state`` of an FSDP2 model, and ``merge_fsdp_weights``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file

from tests.clients.programs._common import made, main, stepped

PACKAGE, RANKS = "accelerate", 2


def prepared(seed, model=None):
    AcceleratorState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = made(seed) if model is None else model
    optimizer = torch.optim.AdamW([it for it in model.parameters() if it.requires_grad])
    return accelerator, *accelerator.prepare(model, optimizer)


def save(folder):
    accelerator, model, optimizer = prepared(0)
    stepped(model, optimizer)
    accelerator.save_state(folder)


def load(folder):
    accelerator, model, optimizer = prepared(1)
    stepped(model, optimizer)
    accelerator.load_state(folder)
    merged = {}
    if dist.get_rank() == 0:
        with tempfile.TemporaryDirectory() as out:
            merge_fsdp_weights(str(Path(folder) / "pytorch_model_fsdp_0"), out)
            merged = load_file(Path(out) / "model.safetensors")
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "merged": merged}


if __name__ == "__main__":
    main(save, load)
