"""accelerate: what ``save_state`` and ``load_state`` call for FSDP2, and ``merge_fsdp_weights``.

Without a GPU, ``Accelerator`` itself does not choose FSDP.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import (
    load_fsdp_model,
    load_fsdp_optimizer,
    merge_fsdp_weights,
    save_fsdp_model,
    save_fsdp_optimizer,
)
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard

from tests.clients.programs._common import made, main, stepped

PACKAGE, RANKS = "accelerate", 2


def prepared(seed, model=None):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", cpu_ram_efficient_loading=False
    )
    model = fully_shard(made(seed) if model is None else model)
    optimizer = torch.optim.AdamW([it for it in model.parameters() if it.requires_grad])
    stepped(model, optimizer)
    return plugin, Accelerator(cpu=True), model, optimizer


def save(folder):
    plugin, accelerator, model, optimizer = prepared(0)
    save_fsdp_model(plugin, accelerator, model, folder)
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder)


def load(folder):
    plugin, accelerator, model, optimizer = prepared(1)
    load_fsdp_model(plugin, accelerator, model, folder)
    load_fsdp_optimizer(plugin, accelerator, optimizer, model, folder)
    with tempfile.TemporaryDirectory() as out:
        merge_fsdp_weights(str(Path(folder) / "pytorch_model_fsdp_0"), out)
        file = Path(out) / "model.safetensors"
        merged = load_file(file) if file.exists() else {}  # the first rank writes it
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "merged": merged}


if __name__ == "__main__":
    main(save, load)
