"""Planning: what an item costs before the first byte is read, from 1,000 items to a million.

Metadata, plan and targets are made in memory; there are no files. Timed is all that ``read_data``
does before it reads: specs, tasks, destinations, the check for targets that share memory, and the
engine's own books.

A load plans once, from objects that it has not looked at before. So there are several plans of each
of the smaller sizes, taken in turns: none is in the processor's cache because it was the last one.

"Look-ups" are those that every reader needs, alone: where an item is stored, and which tensor it
goes to. A dict of a million names lies in no cache, so that they cost more than in a small one.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from benchmarks.results import Bar, Section, Table
from paraload import ParallelFileSystemReader
from paraload.adapters.dcp.read_data import setup_of
from paraload.adapters.dcp.reader_config import ReaderConfig
from paraload.adapters.dcp.readers import ParallelFileReader
from paraload.engine.load import Load
from paraload.runtime.gc_pause import collector_paused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
#: The size that the largest one is compared with.
_BASE: Final = 10_000
_ROUNDS: Final = 3
#: Items of all plans of one size, but for the sizes that are larger.
_ITEMS_OF_A_SIZE: Final = 100_000
_MOST_PLANS: Final = 20
_FILES: Final = 8
_SHAPE: Final = torch.Size((8, 16))
_ORIGIN: Final = torch.Size((0, 0))
_RECORD_BYTES: Final = 1729


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Plan loads of 1,000 to 1,000,000 small tensors."""
    # A load pauses the collector while it plans. It is paused here for the whole of it, or else it
    # would walk the millions of objects that are planned for now and then.
    with collector_paused():
        return _measured(checkpoints, rounds)


def _measured(checkpoints: Checkpoints, rounds: int | None) -> Section:
    jobs = {size: [_InMemory(checkpoints, size) for _ in range(_plans(size))] for size in _SIZES}
    seconds: dict[int, list[float]] = {size: [] for size in _SIZES}
    look_ups: dict[int, list[float]] = {size: [] for size in _SIZES}
    for _ in range(rounds or _ROUNDS):
        for size, plans in jobs.items():
            seconds[size] += [job.planned_in_s() for job in plans]
            look_ups[size] += [job.looked_up_in_s() for job in plans]
    us, us_look_ups = _us_an_item(seconds), _us_an_item(look_ups)
    nbytes = {size: plans[0].bytes_held() / size for size, plans in jobs.items()}
    table = Table(
        title="Planning: metadata made in memory, no files",
        columns=("items", "median s", "us an item", "look-ups", "bytes an item", "min..max s"),
        rows=tuple(
            (
                f"{size:,}",
                f"{statistics.median(seconds[size]):.3f}",
                f"{us[size]:.2f}",
                f"{us_look_ups[size]:.2f}",
                f"{nbytes[size]:.0f}",
                f"{min(seconds[size]):.3f}..{max(seconds[size]):.3f}",
            )
            for size in _SIZES
        ),
    )
    last = _SIZES[-1]
    what = f"planning, {last:,} items"
    bars = tuple(
        Bar(name=what, value=of[last] / of[_BASE], limit=1.2, unit=unit, at_most=True)
        for of, unit in (
            (us, f"x the time of {_BASE:,}, an item"),
            (nbytes, f"x the memory of {_BASE:,}, an item"),
        )
    )
    figures = {
        str(size): {
            "us_an_item": us[size],
            "us_look_ups": us_look_ups[size],
            "bytes_an_item": nbytes[size],
        }
        for size in _SIZES
    }
    return Section(tables=(table,), bars=bars, figures=figures)


def _us_an_item(seconds: Mapping[int, list[float]]) -> dict[int, float]:
    return {size: statistics.median(values) / size * 1e6 for size, values in seconds.items()}


def _plans(size: int) -> int:
    return max(1, min(_MOST_PLANS, _ITEMS_OF_A_SIZE // size))


class _InMemory:
    """A reader, a plan and a planner for ``size`` tensors that no file holds."""

    def __init__(self, checkpoints: Checkpoints, size: int) -> None:
        memory = torch.empty(size, *_SHAPE)
        names = [f"layers.{n:07}.weight" for n in range(size)]
        indexes = [MetadataIndex(name, _ORIGIN) for name in names]
        self._planner = DefaultLoadPlanner()
        self._planner.state_dict = dict(zip(names, memory.unbind(), strict=True))
        self._reader: Any = ParallelFileSystemReader(checkpoints.folder, executor="threads")
        self._reader.storage_data = {
            index: _StorageInfo(f"__0_{n % _FILES}.distcp", n * _RECORD_BYTES, _RECORD_BYTES)
            for n, index in enumerate(indexes)
        }
        self._plan = LoadPlan([_read_item(name) for name in names])

    def _planned(self) -> Load:
        with collector_paused():
            reader = self._reader
            config = ReaderConfig(reader, ParallelFileReader)
            setup = setup_of(config, self._plan, self._planner, time.monotonic())
            load = Load(setup, process=lambda _: None, on_progress=None)
            load.prepare()
            return load

    def planned_in_s(self) -> float:
        """How long planning takes."""
        started = time.perf_counter()
        planned = self._planned()
        seconds = time.perf_counter() - started
        del planned
        return seconds

    def looked_up_in_s(self) -> float:
        """How long looking up every item takes: where it is stored and where it goes."""
        storage_data, state_dict = self._reader.storage_data, self._planner.state_dict
        started = time.perf_counter()
        for item in self._plan.items:
            storage_data[item.storage_index]
            state_dict[item.dest_index.fqn]
        return time.perf_counter() - started

    def bytes_held(self) -> int:
        """Memory that a plan keeps."""
        tracemalloc.start()
        planned = self._planned()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del planned
        return held


def _read_item(name: str) -> ReadItem:
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=MetadataIndex(name, _ORIGIN),
        dest_offsets=_ORIGIN,
        storage_index=MetadataIndex(name, _ORIGIN),
        storage_offsets=_ORIGIN,
        lengths=_SHAPE,
    )
