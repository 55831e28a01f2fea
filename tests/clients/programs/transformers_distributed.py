"""transformers: sharded safetensors for the model, DCP for the optimizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed.checkpoint import (
    _load_model_checkpoint_distributed,
    _save_model_checkpoint_distributed,
    load_optimizer_distributed,
    save_optimizer_distributed,
)

PACKAGE, RANKS = "transformers", 2


def model_of(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None]).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def save(folder):
    model, optimizer = model_of(0)
    _save_model_checkpoint_distributed(model, str(Path(folder) / "model"))
    save_optimizer_distributed(model, optimizer, str(Path(folder) / "optimizer"))


def load(folder):
    model, optimizer = model_of(1)
    _load_model_checkpoint_distributed(model, str(Path(folder) / "model"))
    load_optimizer_distributed(model, optimizer, str(Path(folder) / "optimizer"))
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
