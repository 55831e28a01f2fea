"""One rank of ``benchmarks.ranks``: load an FSDP2 checkpoint with either reader in turn.

    RANK=0 WORLD_SIZE=2 python -m benchmarks.ranks_child FOLDER MIB ROUNDS

Rank 0 prints the figures of the slowest rank of each load as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh

import paraload
from benchmarks.command import quiet_torch
from benchmarks.rounds import interleaved
from examples._model import Trainer, shape_for
from examples._state import differences, local_bytes, poison, snapshot


class TorchReader(dcp.FileSystemReader):
    """torch's reader, with a clock."""

    read_s = 0.0

    def read_data(self, *args: Any) -> Any:
        """Read, and take the time."""
        started_s = time.perf_counter()
        done = super().read_data(*args)
        self.read_s = time.perf_counter() - started_s
        return done


def load_stock(state: dict[str, Any], path: str) -> float:
    """Load with ``dcp.load`` and torch's reader; seconds of ``read_data`` in it."""
    reader = TorchReader(path)
    dcp.load(state, storage_reader=reader)
    return reader.read_s


def load_parallel(state: dict[str, Any], path: str) -> float:
    """Load with ``paraload.load``; seconds of ``read_data`` in it."""
    return paraload.load(state, path).seconds


def load_with_reader(state: dict[str, Any], path: str) -> float:
    """Load with ``dcp.load`` and paraload's reader; seconds of ``read_data`` in it."""
    reader = paraload.ParallelFileSystemReader(path)
    dcp.load(state, storage_reader=reader)
    assert reader.last_report is not None  # noqa: S101 - the load has succeeded
    return reader.last_report.seconds


ARMS = {
    "dcp.load": load_stock,
    "dcp.load, paraload's reader": load_with_reader,
    "paraload.load": load_parallel,
}


def main(folder: str, mib: str, rounds: str) -> None:
    """Save, load in turn, compare every bit, print."""
    quiet_torch()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    path = f"{folder}/checkpoint"
    trainer = Trainer(shape_for(int(mib) << 20), init_device_mesh("cpu", (world,)), seed=1)
    state = trainer.state()
    dcp.save(state, checkpoint_id=path)
    expected = snapshot(state)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for number, name in interleaved(list(ARMS), rounds=1 + int(rounds)):
        poison(state)
        dist.barrier()
        started_s = time.perf_counter()
        read_s = ARMS[name](state, path)
        taken = time.perf_counter() - started_s, read_s
        if wrong := differences(state, expected):
            raise RuntimeError(f"{name!r} loaded other bytes into {wrong[0]!r} than were saved")
        of_ranks: list[Any] = [None] * world
        dist.all_gather_object(of_ranks, taken)
        if number:  # the first round warms up
            load_s, read_s = (max(column) for column in zip(*of_ranks, strict=True))
            seconds[name].append((load_s, read_s))
    nbytes: list[Any] = [None] * world
    dist.all_gather_object(nbytes, local_bytes(state))
    if rank == 0:
        print(json.dumps({"bytes": sum(nbytes), "seconds": seconds}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
