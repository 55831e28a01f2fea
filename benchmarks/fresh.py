"""Fresh targets: untouched tensors, as in a model that was created empty for a load.

They have no pages yet. What it is worth to make them all at once is shown by an arm that does not,
and what huge pages would be worth by one that asks for them.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import torch

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table, speed_table
from benchmarks.rounds import check_arms, time_rounds
from paraload.sources import local as _local

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["measure"]

_ROUNDS: Final = 5
_STOCK: Final = arms.stock()
_THREADS: Final = arms.parallel("threads")
_STOCK_FRESH: Final = "torch FileSystemReader, fresh"
_SETTING: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: malloc puts a large tensor so far behind the begin of a page.
_MALLOC_HEADER_BYTES: Final = 64


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 1.46 GiB whole into tensors that were touched, and into tensors that were not."""
    touched = whole_case(checkpoints.llama(files=8))
    check_arms((_STOCK, _THREADS), touched)
    preparations = {
        "torch FileSystemReader, touched": lambda: _STOCK.prepare(touched).run,
        _STOCK_FRESH: lambda: _STOCK.prepare(_fresh(touched)).run,
        "paraload threads, touched": lambda: _THREADS.prepare(touched).run,
        "paraload threads, fresh": lambda: _THREADS.prepare(_fresh(touched)).run,
        "the same, a fault for each page": lambda: _fault_by_fault(_fresh(touched)),
        "the same, with huge pages": lambda: _fault_by_fault(_fresh(touched), huge=True),
    }
    timings = time_rounds(preparations, rounds=rounds or _ROUNDS)
    stock_s = timings[_STOCK_FRESH].median_s
    bar = Bar(
        name="paraload threads, fresh targets",
        value=stock_s / timings["paraload threads, fresh"].median_s,
        limit=1.5,
        unit="x torch",
    )
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    table = _table(timings, touched.payload_bytes)
    return Section(tables=(table,), bars=(bar,), figures=figures)


def _table(timings: Mapping[str, Timing], payload_bytes: int) -> Table:
    gib = payload_bytes / (1 << 30)
    setting = _SETTING.read_text().strip() if _SETTING.exists() else "unknown"
    title = f"Fresh targets: {gib:.2f} GiB, page cache warm, huge pages: {setting}"
    return speed_table(title, timings, payload_bytes, {"x torch, fresh": _STOCK_FRESH})


def _fresh(case: Case) -> Case:
    return replace(case, targets={name: _untouched(like) for name, like in case.targets.items()})


def _untouched(like: torch.Tensor) -> torch.Tensor:
    """Memory that this process never had: ``torch.empty`` may give back what was freed before."""
    memory = mmap.mmap(
        -1, _MALLOC_HEADER_BYTES + like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    flat = torch.frombuffer(memory, dtype=torch.uint8, offset=_MALLOC_HEADER_BYTES)
    return flat.view(like.dtype).view(like.shape)


def _fault_by_fault(case: Case, *, huge: bool = False) -> Callable[[], object]:
    run = _THREADS.prepare(case).run

    def run_so() -> None:
        if huge:
            for tensor in case.targets.values():
                _ask_for_huge_pages(tensor)
        with patch.object(_local, "populate", lambda _: None):
            run()

    return run_so


def _ask_for_huge_pages(tensor: torch.Tensor) -> None:
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    nbytes = ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - first)
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(first), nbytes, mmap.MADV_HUGEPAGE):
        raise OSError("no huge pages here")
