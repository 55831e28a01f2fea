"""The whole load of many small tensors: metadata, plan and data, as a program asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

import paraload
from benchmarks.cases import whole_case
from benchmarks.checkpoints import poison
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import time_rounds
from paraload.metadata import forget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 3
_STOCK: Final = "dcp.load, torch FileSystemReader"
_DROP_IN: Final = "dcp.load, ParallelFileSystemReader"
_PARALOAD: Final = "paraload.load"


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 50,000 tensors of 4 KiB with one call."""
    case = whole_case(checkpoints.small())
    loads: dict[str, Callable[[Path, dict[str, torch.Tensor]], object]] = {
        _STOCK: lambda folder, state: dcp.load(
            state, storage_reader=FileSystemReader(folder), no_dist=True
        ),
        _DROP_IN: lambda folder, state: dcp.load(
            state, storage_reader=paraload.ParallelFileSystemReader(folder), no_dist=True
        ),
        _PARALOAD: lambda folder, state: paraload.load(state, folder, no_dist=True),
    }
    _check(loads, case)

    def preparation(name: str) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            forget()  # as a program that loads once
            return lambda: loads[name](case.folder, dict(case.targets))

        return prepare

    timings = time_rounds({name: preparation(name) for name in loads}, rounds=rounds or _ROUNDS)
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


def _check(loads: dict[str, Callable[[Path, dict[str, torch.Tensor]], object]], case: Case) -> None:
    """Every call fills every tensor with the same bytes as torch's.

    Raises:
        RuntimeError: one does not.
    """
    expected: dict[str, torch.Tensor] = {}
    for name, load in loads.items():
        poison(case.targets)
        load(case.folder, dict(case.targets))
        expected = expected or {key: tensor.clone() for key, tensor in case.targets.items()}
        for key, tensor in case.targets.items():
            if not torch.equal(tensor.view(torch.uint8), expected[key].view(torch.uint8)):
                raise RuntimeError(f"{name!r} loaded other bytes into {key!r} than torch's reader")
