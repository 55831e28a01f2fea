"""Loads in a loop, with faults and cancellations: each ends well or typed, nothing grows.

    SOAK_SECONDS=600 python -m tests.soak

What the process holds is written down after every load; a straight line through the second half
must not rise by more than noise. Ends with 1 when something grows or a load ends otherwise.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.executors.processes import slots as _slots
from paraload.testing import FaultySource, make_checkpoint, resources
from tests.old_torch import EXTENSIONS

__all__ = ["run"]

#: Growth over the measured half that counts as noise: a load of 16 MiB leaves arenas behind.
ALLOWED = {"rss_mib": 24.0, "descriptors": 1.0, "threads": 1.0, "children": 0.5, "shared": 0.5}


#: On a machine that is busy, loads are few, and what is only made once looks like growth.
LEAST_LOADS = 150


#: What seems to grow is watched for as long again, and once more: a step ends, a leak does not.
TIMES = 3


#: Shared memory that this process made; other programs of the machine have theirs.
_segments: set[str] = set()


class _Recorded(_slots.SharedMemory):
    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        _segments.add(self.name)


class HookError(Exception):
    """A user's hook went wrong."""


def _states():
    many = {f"n{n}": torch.full((17,), float(n)) for n in range(300)}
    states = {
        "small": (many, {}),
        "big": ({f"w{n}": torch.randn(1 << 20) for n in range(3)}, {"files": 3}),
        "objects": ({"step": 3, "text": "x" * 5000, "w": torch.ones(4, 5)}, {}),
        "columns": ({f"m{n}": torch.randn(2048, 1024) for n in range(2)}, {"files": 1}),
    }
    if EXTENSIONS.is_here:
        states["zstd"] = {"w": torch.arange(300_000.0), "v": torch.ones(9)}, {"zstd": True}
    return states


#: What is wanted of the matrices in "columns": little enough to be copied out of the page cache.
COLUMNS = slice(128, 192)


class _ColumnsPlanner(DefaultLoadPlanner):
    """Plans as for a rank that has some columns of matrices that were saved whole."""

    def create_local_plan(self):
        return LoadPlan([self._item(name, part) for name, part in self.state_dict.items()])

    def _item(self, name, part):
        return ReadItem(
            type=LoadItemType.TENSOR,
            dest_index=MetadataIndex(name),
            dest_offsets=torch.Size((0, 0)),
            storage_index=MetadataIndex(name, torch.Size((0, 0))),
            storage_offsets=torch.Size((0, COLUMNS.start)),
            lengths=part.shape,
        )


def _interrupted(chance):
    timer = threading.Timer(chance.uniform(0.0, 0.03), _thread.interrupt_main)
    timer.name = "soak-interrupt"
    return timer


def _drop(folder):
    """Drop it from the page cache, as far as possible."""
    for file in folder.glob("*.distcp"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Soak:
    def __init__(self, folder, seed):
        self.chance = random.Random(seed)
        self.states = _states()
        self.folders = {}
        self.ends = Counter()
        for name, (state, keywords) in self.states.items():
            self.folders[name] = folder / name
            make_checkpoint(folder / name, state, **keywords)

    def load(self):
        """One load, of a random kind; what became of it."""
        chance = self.chance
        name = chance.choice(sorted(self.states))
        state, planner = self.states[name][0], DefaultLoadPlanner()
        if name == "columns":
            state, planner = {key: m[:, COLUMNS] for key, m in state.items()}, _ColumnsPlanner()
        faults = ["none", "none", "error", "flip", "progress", "hook", "interrupt"]
        if name == "columns":
            faults.remove("flip")  # no checksum is of a part
        fault = chance.choice(faults)
        # Processes take a second to start, and cannot be sent a hook that is defined in a loop.
        executor = chance.choice(("sequential", *("threads",) * 6, "auto", "auto", "processes"))
        if fault in {"progress", "hook", "interrupt"} and executor == "processes":
            executor = "threads"
        keywords = {"executor": executor, "max_workers": chance.choice((None, 1, 2, 5))}
        if chance.random() < 0.3:
            keywords["direct_io"] = True
            _drop(self.folders[name])
        if fault == "progress":
            keywords["progress"] = _raises
        if fault == "hook":
            keywords["narrow_tensor"] = _raises
        reader = ParallelFileSystemReader(self.folders[name], retries=1, **keywords)
        if fault in {"error", "flip"}:
            error = OSError(5, "EIO, on purpose") if fault == "error" else None
            source, at = reader._make_source(), chance.randint(1, 4)
            times = chance.choice((1, 99))
            reader._make_source = lambda: FaultySource(source, fail_at=at, times=times, error=error)
        target = {
            key: torch.zeros_like(value) if isinstance(value, torch.Tensor) else None
            for key, value in state.items()
        }
        self.ends[f"{fault}: {self._end(reader, planner, target, state, fault)}"] += 1

    def _end(self, reader, planner, target, state, fault):
        timer = _interrupted(self.chance) if fault == "interrupt" else None
        try:
            if timer is not None:
                timer.start()
            _load(reader, planner, target)
            if timer is not None:
                timer.join()
                time.sleep(0)  # where it is delivered, if the load was faster
        except CheckpointReadError as error:
            return type(error).__name__
        except HookError:
            return "HookError"
        except KeyboardInterrupt:
            return "KeyboardInterrupt"
        finally:
            if timer is not None:
                with contextlib.suppress(KeyboardInterrupt):
                    timer.join()
        for key, value in state.items():
            same = torch.equal if isinstance(value, torch.Tensor) else value.__class__.__eq__
            if not same(target[key], value):
                raise AssertionError(f"{key} arrived wrong, with fault {fault}")
        return "loaded"


def _raises(*_):
    raise HookError


def _load(reader, planner, target):
    found = reader.read_metadata()
    planner.set_up_planner(target, found, True)
    reader.set_up_storage_reader(found, True)
    plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
    reader.read_data(plan, planner)
    target.update({name: planner.original_state_dict[name] for name in target})


def _held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that what is left is held
    held = Counter(line.split()[0] for line in resources().elements())
    return {
        "rss_mib": psutil.Process().memory_info().rss / (1 << 20),
        "descriptors": held["descriptor"],
        "threads": held["thread"],
        "children": held["process"],
        "shared": sum(Path("/dev/shm", name).exists() for name in _segments),
    }


def _growth(values):
    """What a straight line through the second half rises by; the first half is warm-up."""
    half = np.asarray(values[len(values) // 2 :], dtype=float)
    if len(half) < 8:  # too few for a line
        return 0.0
    return float(np.polyfit(np.arange(len(half)), half, 1)[0] * len(half))


def _grown(rows):
    """The names of what rises by more than is allowed."""
    return [n for n, allowed in ALLOWED.items() if _growth([row[n] for row in rows]) > allowed]


def run(seconds, *, seed=0, out=print):
    """Load for this many seconds, or longer until there are enough loads; what grew, by name."""
    began = time.monotonic()
    with (
        mock.patch.object(_slots, "SharedMemory", _Recorded),
        tempfile.TemporaryDirectory(prefix="paraload-soak-") as folder,
    ):
        soak = _Soak(Path(folder), seed)
        rows, grown = [], None
        for _ in range(TIMES):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline or len(rows) < LEAST_LOADS:
                soak.load()
                rows.append(_held())
            if not (grown := _grown(rows)):
                break
    out(f"{len(rows)} loads in {time.monotonic() - began:.0f} s, seed {seed}")
    for end, count in sorted(soak.ends.items()):
        out(f"  {count:6} {end}")
    out(f"  {'':12} {'middle':>10} {'last':>10} {'slope':>10} {'allowed':>10}")
    for name, allowed in ALLOWED.items():
        values = [row[name] for row in rows]
        out(
            f"  {name:12} {values[len(values) // 2]:10.1f} {values[-1]:10.1f}"
            f" {_growth(values):10.2f} {allowed:10.1f}{'  GROWS' if name in grown else ''}"
        )
    return grown


if __name__ == "__main__":
    # A shell that starts this in the background has it ignore SIGINT, and nothing is interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    sys.exit(bool(run(seconds, seed=int(os.environ.get("SOAK_SEED", "0")))))
