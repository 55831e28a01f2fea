"""Start a new model from parts of a checkpoint: ``allow_partial_load``.

    torchrun --nproc-per-node 2 examples/warm_start.py

The new model has the body of the saved one, and a head of its own.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard

import paraload


def model(head: dict[str, int]) -> nn.ModuleDict:
    """A sharded body with a head of the given name and width."""
    parts: dict[str, nn.Module] = {"body": nn.Linear(16, 16)}
    parts |= {name: nn.Linear(16, width) for name, width in head.items()}
    for part in parts.values():
        fully_shard(part)
    return nn.ModuleDict(parts)


def local(tensor: Any) -> torch.Tensor:
    """The shard of this rank."""
    shard: torch.Tensor = tensor.to_local()
    return shard


def main() -> None:
    """Save one model, start another one from it."""
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    folder: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder, src=0)
    saved: dict[str, Any] = get_model_state_dict(model({"language": 100}))
    dcp.save(saved, checkpoint_id=folder[0])

    new = model({"classes": 10})
    state: dict[str, Any] = get_model_state_dict(new)
    head = local(state["classes.weight"]).clone()
    try:
        paraload.load(state, folder[0])
    except paraload.CheckpointReadError as error:
        if dist.get_rank() == 0:
            print(error, flush=True)  # names what the checkpoint lacks; nothing was read
    report = paraload.load(state, folder[0], planner=DefaultLoadPlanner(allow_partial_load=True))
    set_model_state_dict(new, state)

    names = "body.weight", "body.bias"
    is_same = all(local(state[name]).equal(local(saved[name])) for name in names)
    is_kept = local(get_model_state_dict(new)["classes.weight"]).equal(head)
    told = [""] * dist.get_world_size()
    mine = f"{report.items} tensors loaded; body as saved: {is_same}; head untouched: {is_kept}"
    dist.all_gather_object(told, mine)
    if dist.get_rank() == 0:
        print("\n".join(told), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
