"""torchtitan: its ``CheckpointManager`` with an FSDP2 model."""

from __future__ import annotations

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torchtitan.components.checkpoint import CheckpointManager

from tests.clients.programs._common import made, main, stepped

PACKAGE, RANKS = "torchtitan", 2


class Optimizers:
    """What torchtitan's container does: a flat state, by names of parameters."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def state_dict(self):
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        return get_optimizer_state_dict(self.model, self.optimizer, options=options)

    def load_state_dict(self, state_dict):
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        set_optimizer_state_dict(
            self.model, self.optimizer, optim_state_dict=state_dict, options=options
        )


class Steps:
    def __init__(self, step):
        self.step = torch.tensor(step)

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state_dict):
        self.step = state_dict["step"]


def managed(seed, folder):
    model = fully_shard(made(seed))
    optimizer = torch.optim.AdamW(model.parameters())
    stepped(model, optimizer)
    optimizers = Optimizers(model, optimizer)
    states = {"train_state": Steps(7 - seed)}
    manager = CheckpointManager(
        CheckpointManager.Config(
            enable=True, folder="steps", interval=1, last_save_model_only=False
        ),
        dataloader=None,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=Steps(40 + seed),
        states=states,
        sd_adapter=None,
        base_folder=folder,
    )
    return manager, states


def save(folder):
    manager, _ = managed(0, folder)
    manager.save(1, last_step=True)
    manager.close()


def load(folder):
    manager, states = managed(1, folder)
    if not manager.load(step=1):
        raise RuntimeError("torchtitan found no checkpoint")
    manager.close()
    return {
        name: state.state_dict() for name, state in states.items() if hasattr(state, "state_dict")
    }


if __name__ == "__main__":
    main(save, load)
