"""peft: LoRA adapters of an FSDP2 model, saved and loaded by accelerate."""

from __future__ import annotations

import torch
from accelerate.utils import load_fsdp_model, save_fsdp_model
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import torchao

from tests.clients.programs._common import made
from tests.clients.programs.accelerate_fsdp2 import prepared

PACKAGE, RANKS = "peft", 2


torchao.is_torchao_available = lambda: False  # peft refuses the version that torchtune needs


def adapted(seed):
    model = get_peft_model(made(seed), LoraConfig(target_modules=["0", "2"], r=4))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    plugin, accelerator, model, _ = prepared(seed, model)
    return plugin, accelerator, model


def save(folder):
    save_fsdp_model(*adapted(0), folder, adapter_only=True)


def load(folder):
    plugin, accelerator, model = adapted(1)
    load_fsdp_model(plugin, accelerator, model, folder, adapter_only=True)
    return model.state_dict()
