"""peft through accelerate: LoRA adapters of an FSDP2 model."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from tests.clients.programs._common import made, stepped
from tests.clients.programs.accelerate_fsdp2 import prepared

PACKAGE, RANKS = "peft", 2


def adapted(seed):
    model = get_peft_model(made(seed), LoraConfig(target_modules=["0", "2"], r=4))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return prepared(seed, model)


def save(folder):
    accelerator, model, optimizer = adapted(0)
    stepped(model, optimizer)
    accelerator.save_state(folder)


def load(folder):
    accelerator, model, optimizer = adapted(1)
    stepped(model, optimizer)
    accelerator.load_state(folder)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
