"""Good files for the mutators to begin with, made when they are asked for."""

from __future__ import annotations

import io
import pickle
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save

from paraload.testing import make_checkpoint
from tests.old_torch import EXTENSIONS, bytes_as
from tests.unit.metadata_cases import example

__all__ = ["POISON", "checkpoint", "compressed", "metadata", "records", "safetensors", "state"]

#: What targets hold before a load, and no checkpoint does.
POISON = -7


@lru_cache
def state():
    """Each number occurs once, so a value shows where it came from."""
    numbers = torch.arange(1, 20_000)
    return {
        "a": numbers[:12].reshape(3, 4).float(),
        "b": numbers[12:24].reshape(3, 4).float(),
        "big": numbers[1000:3000].reshape(20, 100).double(),
        "half": numbers[30:60].reshape(5, 6).to(torch.int16),
        "scalar": numbers[70].float(),
        "step": "a text",
    }


@lru_cache
def checkpoint(*, zstd=False):
    """``name -> bytes`` of the files of a small checkpoint."""
    with TemporaryDirectory() as folder:
        make_checkpoint(folder, dict(state()), zstd=zstd)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def compressed():
    """Values of ``zstd`` that this torch can write."""
    return (False, True) if EXTENSIONS.is_here else (False,)


@lru_cache
def metadata():
    """Pickles of torch's writer, and of others."""
    stored = pickle.loads(checkpoint()[".metadata"])
    found = [pickle.dumps(example(), protocol) for protocol in (2, 3, 4, 5)]
    found += [checkpoint(zstd=zstd)[".metadata"] for zstd in compressed()]
    stored.planner_data = [{"deep": [({},) * 3]}, b"bytes", bytearray(b"x"), 1 << 70, 0.5, {1}]
    return tuple(found) + tuple(pickle.dumps(stored, protocol) for protocol in (2, 5))


@lru_cache
def records():
    """``record -> tensor`` for each kind of record that torch writes."""
    whole = torch.arange(1, 61).reshape(6, 10)
    tensors = [
        whole.float(),
        whole.double().T,
        whole[2:, 3:].to(torch.int16),
        whole.to(torch.uint16),
        torch.nn.Parameter(whole.float()),
        torch.zeros(0, 3),
        torch.tensor(3.0),
    ]
    return {_saved(tensor): tensor.detach() for tensor in tensors} | {
        _saved(whole, _use_new_zipfile_serialization=False): whole
    }


@lru_cache
def safetensors():
    """Whole files: many dtypes, empty tensors, metadata, and nothing at all."""
    whole = torch.arange(1, 61, dtype=torch.uint8)
    tensors = {
        "w": whole.reshape(6, 10).float(),
        "half": whole.clone().view(torch.bfloat16).reshape(5, 6),
        "f4": bytes_as("float4_e2m1fn_x2", whole, (6, 10)),
        "f8": bytes_as("float8_e8m0fnu", whole, (60,)),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
    }
    sharded = {"DCP_SHARDING_INFO": "{}", "format": "pt"}
    return (save(tensors), save({"w": whole}, sharded), save(tensors, sharded), save({}))


def _saved(tensor, **keywords):
    stream = io.BytesIO()
    torch.save(tensor, stream, **keywords)
    return stream.getvalue()
