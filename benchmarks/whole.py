"""The whole load of many small tensors: metadata, plan and data, as a program asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

import paraload
from benchmarks.arms import Arm, Prepared
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints

__all__ = ["HEADLINE", "measure"]

_ROUNDS: Final = 3
_STOCK: Final = "dcp.load, torch FileSystemReader"
_PARALOAD: Final = "paraload.load"
#: torch and paraload, for the front page.
HEADLINE: Final = (_STOCK, _PARALOAD)


def _loading(name: str, load: Callable[[Path, dict[str, torch.Tensor]], object]) -> Arm:
    def prepare(case: Case) -> Prepared:
        return Prepared(run=lambda: load(case.folder, dict(case.targets)))

    return Arm(name=name, prepare=prepare)


_ARMS: Final = (
    _loading(
        _STOCK,
        lambda folder, state: dcp.load(
            state, storage_reader=FileSystemReader(folder), no_dist=True
        ),
    ),
    _loading(
        "dcp.load, ParallelFileSystemReader",
        lambda folder, state: dcp.load(
            state, storage_reader=paraload.ParallelFileSystemReader(folder), no_dist=True
        ),
    ),
    _loading(_PARALOAD, lambda folder, state: paraload.load(state, folder, no_dist=True)),
)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 50,000 tensors of 4 KiB with one call."""
    case = whole_case(checkpoints.small())
    timings = measure_arms(_ARMS, case, rounds=rounds or _ROUNDS, check_counts=True).timings
    stock_s = timings[_STOCK].median_s
    table = Table(
        title=f"Whole loads: {len(case.targets):,} tensors of 4 KiB in 8 files",
        columns=("call", "median s", "us a tensor", "x torch", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{timing.median_s / len(case.targets) * 1e6:.1f}",
                f"{stock_s / timing.median_s:.1f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
    ratio = stock_s / timings[_PARALOAD].median_s
    bar = Bar(name=f"{_PARALOAD}, small tensors", value=ratio, limit=4.0, unit="x torch")
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(table,), bars=(bar,), figures=figures)
