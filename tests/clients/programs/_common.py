"""What several programs share: a model, an optimizer that has stepped, and the ranks' own parts."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import sys

import torch
import torch.distributed as dist
from torch import nn


def made(seed):
    """A small model; another seed has other weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 32), nn.LayerNorm(32))


def stepped(model, optimizer, seed=0):
    """Give the optimizer a state."""
    torch.manual_seed(seed)
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def digests(value, name=""):
    """A digest of the bits of each tensor of this rank, and each other value, by name."""
    if isinstance(value, dict):
        parts = [digests(part, f"{name}.{key}") for key, part in value.items()]
        return {key: digest for part in parts for key, digest in part.items()}
    if isinstance(value, list | tuple):
        return digests(dict(enumerate(value)), name)
    if not isinstance(value, torch.Tensor):
        return {name: repr(value)}
    local = value.detach()
    local = (local.to_local() if hasattr(local, "to_local") else local).contiguous().cpu()
    data = local.reshape(-1).view(torch.uint8).numpy().tobytes() if local.numel() else b""
    return {name: f"{local.dtype} {list(local.shape)} {hashlib.sha256(data).hexdigest()}"}


def main(save, load):
    """The program ``save FOLDER`` or ``load FOLDER``; a load prints the digests of this rank."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.ERROR)
    command, folder = sys.argv[1:]
    dist.init_process_group("gloo")
    if command == "save":
        save(folder)
    else:
        print("digests:", json.dumps(digests(load(folder))), flush=True)
    leave()


def leave():
    """End this rank: at once, since threads of gloo sometimes abort the exit of the interpreter."""
    dist.barrier()
    for child in multiprocessing.active_children():  # Megatron leaves one that serves a queue
        child.terminate()
        child.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
