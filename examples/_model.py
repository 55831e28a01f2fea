"""A small Llama-shaped transformer, sharded with FSDP2 where there is a mesh, and its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - what everybody calls it
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from examples._state import local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ModelShape", "Trainer", "shape_for"]

#: What a parameter takes in the checkpoint: itself and the two moments of AdamW, in float32.
_BYTES_PER_PARAMETER = 12
_MIN_LAYERS = 6
_SEQUENCE = 32
#: Tokens that occur in the texts: few, so that two steps teach something.
_ALPHABET = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Width and depth; everything else of the model follows from them."""

    dim: int
    layers: int

    @property
    def vocab(self) -> int:
        """Tokens."""
        return 16 * self.dim

    @property
    def hidden(self) -> int:
        """Width inside of the feed-forward layers."""
        return 11 * self.dim // 4

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        attention, feed_forward, norms = 3 * self.dim**2, 3 * self.dim * self.hidden, 2 * self.dim
        per_layer = attention + feed_forward + norms
        return 2 * self.vocab * self.dim + self.layers * per_layer + self.dim


def shape_for(checkpoint_bytes: int) -> ModelShape:
    """The widest model whose checkpoint has at least this many bytes, and not many more.

    >>> shape_for(512 << 20)
    ModelShape(dim=512, layers=13)
    """
    wanted = math.ceil(checkpoint_bytes / _BYTES_PER_PARAMETER)
    for dim in (4096, 2048, 1024, 512, 256, 128):
        empty = ModelShape(dim=dim, layers=0).parameters
        per_layer = ModelShape(dim=dim, layers=1).parameters - empty
        layers = math.ceil((wanted - empty) / per_layer)
        if layers >= _MIN_LAYERS:
            return ModelShape(dim=dim, layers=layers)
    return ModelShape(dim=128, layers=_MIN_LAYERS)


class Attention(nn.Module):
    """Causal attention with rotary positions; two query heads share a key head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head_dim = 32
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim // 2, bias=False)
        self.wv = nn.Linear(dim, dim // 2, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, dim) to the same."""
        queries, keys, values = (
            w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(queries), _rotate(keys), values, is_causal=True, enable_gqa=True
        )
        out: torch.Tensor = self.wo(mixed.transpose(1, 2).flatten(-2))
        return out


def _rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions."""
    length, half = x.shape[-2], x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    angles = torch.outer(torch.arange(length), frequencies)
    left, right = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)


class Block(nn.Module):
    """Attention and a SwiGLU feed-forward layer, each behind an RMSNorm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim)
        self.attention = Attention(shape.dim)
        self.ffn_norm = nn.RMSNorm(shape.dim)
        self.w1 = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.w2 = nn.Linear(shape.hidden, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, dim) to the same."""
        x = x + self.attention(self.attention_norm(x))
        normed = self.ffn_norm(x)
        out: torch.Tensor = x + self.w2(F.silu(self.w1(normed)) * self.w3(normed))
        return out


class Transformer(nn.Module):
    """Token numbers to logits."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.dim)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim)
        self.output = nn.Linear(shape.dim, shape.vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, sequence) to (batch, sequence, vocab)."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.output(self.norm(x))
        return logits


class Trainer:
    """A model, its AdamW and how far the training is.

    Args:
        shape: of the model.
        mesh: the ranks that share the parameters; the model is whole when not given.
        seed: of the first values.

    Attributes:
        step_number: steps so far.
    """

    def __init__(self, shape: ModelShape, mesh: DeviceMesh | None, *, seed: int) -> None:
        self.rank = 0 if mesh is None else mesh.get_local_rank()
        with torch.device("meta"):  # so that no rank ever holds the whole model
            self.model = Transformer(shape)
        if mesh is not None:
            for layer in self.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        self.model.to_empty(device="cpu")
        self._first_values(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.step_number = 0

    def step(self) -> float:
        """One step of AdamW on a batch of this rank's own; the loss before it."""
        loss = self._loss(seed=1000 * (self.step_number + 1) + self.rank)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_number += 1
        return float(loss.detach())

    def evaluate(self) -> float:
        """The loss on a batch that is the same everywhere."""
        with torch.no_grad():
            return float(self._loss(seed=0))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors of model and optimizer, and plain objects."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        progress = {"step": self.step_number, "batch": [1, _SEQUENCE]}
        return {"model": model, "optimizer": optimizer, "progress": progress}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave and a load filled."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.step_number = state["progress"]["step"]

    def _first_values(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed + self.rank)
        for parameter in self.model.parameters():
            values = local(parameter)
            if parameter.dim() > 1:
                values.normal_(std=0.02, generator=generator)
            else:
                values.fill_(1.0)

    def _loss(self, *, seed: int) -> torch.Tensor:
        """Of predicting sequences in which each token follows from the one before."""
        generator = torch.Generator().manual_seed(seed)
        tokens = [torch.randint(_ALPHABET, (1, 1), generator=generator)]
        for _ in range(_SEQUENCE):
            tokens.append((5 * tokens[-1] + 3) % _ALPHABET)
        text = torch.cat(tokens, dim=1)
        logits = self.model(text[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
