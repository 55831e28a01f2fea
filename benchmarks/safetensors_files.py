"""Safetensors: against torch's reader, which maps the files, and against the raw limit."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from benchmarks import arms
from benchmarks.cases import Case
from benchmarks.checkpoints import llama_shapes, poison, raw_bytes, warm
from benchmarks.page_cache import ensure_cold, files_below, why_not_cold
from benchmarks.preadv import pieces_of, read_raw
from benchmarks.results import Bar, Section, Table, speed_table
from benchmarks.rounds import measure_arms
from paraload import ParallelHuggingFaceReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["measure"]

_ROUNDS: Final = 9
_FILES: Final = (8, 1)
_THREADS: Final = 8
_PART: Final = 8

_STOCK: Final = arms.reading(
    f"torch HF reader, {_THREADS} threads",
    lambda folder: dcp.HuggingFaceStorageReader(str(folder), thread_count=_THREADS),
)
_PARALOAD: Final = arms.reading("paraload", ParallelHuggingFaceReader)
_DIRECT: Final = arms.reading(
    "paraload, direct_io", lambda folder: ParallelHuggingFaceReader(folder, direct_io=True)
)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 1.6 GiB whole, also with a busy core and cold, and an eighth by rows and by columns."""
    tables, bars, figures = [], list[Bar](), {}
    for files in _FILES:
        folder = _written(checkpoints.folder / f"safetensors-{files}", files)
        contestants: dict[str, tuple[arms.Arm, ...]] = {
            "whole": (_STOCK, _raw(folder), _PARALOAD),
            **dict.fromkeys(("whole, one core busy", "rows", "columns"), (_STOCK, _PARALOAD)),
        }
        if reason := why_not_cold(files_below(folder)):
            title = f"Safetensors: cold reads not measured, {reason}"
            tables.append(Table(title=title, columns=("",), rows=()))
        else:
            contestants["whole, cold"] = _cold(_STOCK), _cold(_DIRECT)
        warm(files_below(folder))
        for what, those in contestants.items():
            case = _case(folder, what)
            with _busy_core() if "busy" in what else nullcontext():
                timings = measure_arms(those, case, rounds=rounds or _ROUNDS).timings
            title = f"{what}, {files} file{'s' * (files > 1)}"
            tables.append(_table(title, timings, case.payload_bytes))
            # torch copies columns out of a mapping: far faster, and SIGBUS if a file is cut.
            bars += _bars(title, timings, ours=those[-1].name)
            figures[title] = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


def _cold(arm: arms.Arm) -> arms.Arm:
    """``arm`` with nothing in the page cache."""

    def prepare(case: Case) -> arms.Prepared:
        prepared = arm.prepare(case)
        ensure_cold(files_below(case.folder))
        return prepared

    return replace(arm, prepare=prepare)


@contextmanager
def _busy_core() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        try:
            yield
        finally:
            spinning.kill()


@cache
def _written(folder: Path, files: int) -> Path:
    """Random bf16 in the shapes of a Llama, in files of about equal size."""
    folder.mkdir()
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(files)]
    for name, shape in llama_shapes(15, 2048, 5632, 32_000).items():
        if len(shape) == 1:
            shape = (1, *shape)  # noqa: PLW2901 - so that each tensor has rows and columns
        least = min(parts, key=lambda part: sum(tensor.nbytes for tensor in part.values()))
        least[name] = torch.empty(shape, dtype=torch.int16).random_().view(torch.bfloat16)
    for number, part in enumerate(parts, 1):
        save_file(part, folder / f"model-{number:05}-of-{files:05}.safetensors")
    os.sync()
    warm(folder.iterdir())
    return folder


def _case(folder: Path, what: str) -> Case:
    metadata = ParallelHuggingFaceReader(folder).read_metadata()
    items = []
    targets = {}
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{name!r} is no tensor")
        (rows, columns), dtype = entry.size, entry.properties.dtype
        offsets, lengths = [0, 0], [rows, columns]
        if what in {"rows", "columns"} and rows > 1:
            dim = 0 if what == "rows" else 1
            lengths[dim] //= _PART
            offsets[dim] = 3 * lengths[dim]
        targets[name] = torch.empty(lengths, dtype=dtype)
        origin = torch.Size((0, 0))
        items.append(
            ReadItem(
                type=LoadItemType.TENSOR,
                dest_index=MetadataIndex(name, origin),
                dest_offsets=origin,
                storage_index=MetadataIndex(name, origin),
                storage_offsets=torch.Size(offsets),
                lengths=torch.Size(lengths),
            )
        )
    poison(targets)
    return Case(folder=folder, targets=targets, plan_items=lambda _: LoadPlan(list(items)))


def _raw(folder: Path) -> arms.Arm:
    storage: Mapping[Any, Any] = ParallelHuggingFaceReader(folder).read_metadata().storage_data

    def prepare(case: Case) -> arms.Prepared:
        pieces = [
            piece
            for index, info in storage.items()
            for piece in pieces_of(
                str(folder / info.relative_path),
                info.offset,
                raw_bytes(case.targets[index.fqn]).numpy().data,
            )
        ]
        return arms.Prepared(run=lambda: read_raw(pieces, workers=arms.WORKERS))

    return arms.Arm(name="raw limit", prepare=prepare)


def _table(title: str, timings: Mapping[str, Timing], payload_bytes: int) -> Table:
    cache = "empty" if "cold" in title else "warm"
    title = f"Safetensors: {payload_bytes / (1 << 30):.2f} GiB, {title}, page cache {cache}"
    return speed_table(title, timings, payload_bytes, {"x torch": _STOCK.name})


def _bars(title: str, timings: Mapping[str, Timing], *, ours: str) -> list[Bar]:
    ours_s = timings[ours].median_s
    is_raw_known = "raw limit" in timings
    value = timings[_STOCK.name].median_s / ours_s
    limit = 0.93 if is_raw_known else 1.0
    bars = [Bar(name=f"safetensors, {title}", value=value, limit=limit, unit="x torch")]
    if is_raw_known:
        value = timings["raw limit"].median_s / ours_s
        bars.append(Bar(name=f"safetensors, {title}", value=value, limit=0.9, unit="of raw"))
    return bars
