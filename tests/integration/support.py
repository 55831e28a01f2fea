"""Checkpoints and plans that several tests use."""

from __future__ import annotations

import io
import pickle
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

import tests.old_torch  # noqa: F401 - before torch is used
from tests.integration.hooks import SCRAMBLED


def _payload_start():
    """448 in torch 2.6, 704 in later versions, which write one more entry before it."""
    stream = io.BytesIO()
    torch.save(torch.full((40,), 0x55, dtype=torch.uint8), stream)
    return stream.getvalue().index(b"\x55" * 40)


#: Bytes before the payload of a record of one tensor.
PAYLOAD = _payload_start()
EXECUTORS = ["sequential", "threads", "processes", "pool"]


def example_state(big=4, small=6):
    """Tensors above and below the size from which records are located, and an object."""
    state = {f"big.{n}": torch.randn(300, 700) for n in range(big)}
    state |= {f"small.{n}": torch.randn(50, 3).to(torch.bfloat16) for n in range(small)}
    return state | {"step": 1234, "note": "text"}


def save(folder, state, *, files=3, **keywords):
    writer = FileSystemWriter(folder, thread_count=files, single_file_per_rank=True, **keywords)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return state


def empty_like(state):
    """Targets for ``state`` that hold none of it."""
    return {
        name: torch.full_like(value, -7) if isinstance(value, torch.Tensor) else None
        for name, value in state.items()
    }


def load(reader, state, planner=None):
    dcp.load(state, storage_reader=reader, planner=planner, no_dist=True)
    return state


def plan_for(reader, state, planner=None):
    """The plan of one rank, as ``dcp.load`` makes it."""
    planner = planner or DefaultLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    plan = reader.prepare_global_plan(planner.create_global_plan([plan]))[0]
    return planner.finish_plan(plan), planner


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value, name


def data_files(folder):
    return sorted(Path(folder).glob("*.distcp"))


def records_of(folder):
    """``name -> (file, offset, length)`` of every item."""
    metadata = FileSystemReader(folder).read_metadata()
    return {
        index.fqn: (Path(folder) / info.relative_path, info.offset, info.length)
        for index, info in metadata.storage_data.items()
    }


@contextmanager
def rewritten(folder):
    """The metadata of a checkpoint, which is written back at the end."""
    path = Path(folder) / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    yield metadata
    path.write_bytes(pickle.dumps(metadata))


def save_as_legacy(folder, tensor):
    """A checkpoint of ``w`` alone, in the format that torch had before archives; its file."""
    save(folder, {"w": tensor})
    legacy = Path(folder) / "legacy.distcp"
    torch.save(tensor, legacy, _use_new_zipfile_serialization=False)
    with rewritten(folder) as metadata:
        [place] = metadata.storage_data.values()
        place.relative_path, place.offset = legacy.name, 0
        place.length = legacy.stat().st_size
    return legacy


def flip(path, offset, bit=1):
    """Damage one bit of a file."""
    with Path(path).open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def scramble(folder):
    """Change every record and keep its length, as an encrypting writer does."""
    for path, offset, length in records_of(folder).values():
        data = bytearray(path.read_bytes())
        data[offset : offset + length] = data[offset : offset + length].translate(SCRAMBLED)
        path.write_bytes(data)
