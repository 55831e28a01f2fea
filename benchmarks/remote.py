"""Whole loads over HTTP from nginx on this machine, with a rate for each connection and without."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import obstore
import torch.distributed.checkpoint as dcp
from obstore.store import HTTPStore
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

import paraload
from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.nginx import nginx
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import check_arms, time_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["CONNECTIONS", "HEADLINE", "MIB_PER_SECOND", "RAW", "measure", "raw_download"]

_ROUNDS: Final = 3
CONNECTIONS: Final = 8
MIB_PER_SECOND: Final = 32
_REQUEST_BYTES: Final = 8 << 20

_TORCH: Final = "torch FsspecReader"
_OURS: Final = f"paraload, {CONNECTIONS} connections"
_DEFAULT: Final = "paraload"
#: torch and paraload, for the front page.
HEADLINE: Final = (_TORCH, _DEFAULT)
RAW: Final = f"obstore ranges, {CONNECTIONS} connections"

#: Files, and how many times as fast as torch's reader 8 connections of that rate must be.
_RATED: Final = {1: 8.0, 4: 8.0, 8: 9.0, 16: 9.0}
_UNLIMITED: Final = (1, 8)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 258 MiB from 1 to 16 files."""
    tables, bars, figures = [], list[Bar](), {}
    with nginx(checkpoints.folder, bytes_per_second=MIB_PER_SECOND << 20) as url:
        for place, layouts in (("rated", tuple(_RATED)), ("full", _UNLIMITED)):
            rows = []
            for files in layouts:
                case = whole_case(checkpoints.remote(files=files))
                timings = _timings(f"{url}/{place}", case, rounds or _ROUNDS)
                rows += _rows(files, timings, case.payload_bytes)
                bars += _bars(place, files, timings)
                figures[f"{place}, {files}"] = {n: t.to_dict() for n, t in timings.items()}
            rate = f"{MIB_PER_SECOND} MiB/s for each connection" if place == "rated" else "no limit"
            mib = case.payload_bytes / (1 << 20)
            tables.append(
                Table(
                    title=f"{mib:.0f} MiB over HTTP, whole loads, {rate}",
                    columns=(
                        "files",
                        "arm",
                        "median s",
                        "MiB/s",
                        "x torch",
                        "of raw",
                        "min..max s",
                    ),
                    rows=tuple(rows),
                )
            )
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


def _timings(url: str, case: Case, rounds: int) -> dict[str, Timing]:
    def ours(**options: Any) -> None:
        paraload.load(dict(case.targets), f"{url}/{case.folder.name}", no_dist=True, **options)

    def stock() -> None:
        reader = FsspecReader(f"{url}/{case.folder.name}")
        dcp.load(dict(case.targets), storage_reader=reader, no_dist=True)

    runs: dict[str, Callable[[], object]] = {
        _TORCH: stock,
        _OURS: partial(ours, max_workers=CONNECTIONS),
        _DEFAULT: ours,
    }
    contestants = [
        arms.Arm(name=name, prepare=partial(_prepared, run)) for name, run in runs.items()
    ]
    _, checked = check_arms(contestants, case)
    del runs[_TORCH]  # which takes so long that this run is enough
    runs[RAW] = raw_download(url, case)
    timed = time_rounds({name: partial(_itself, run) for name, run in runs.items()}, rounds=rounds)
    return {_TORCH: checked[_TORCH]} | timed


def _prepared(run: Callable[[], object], _: object) -> arms.Prepared:
    return arms.Prepared(run=run)


def _itself(run: Callable[[], object]) -> Callable[[], object]:
    return run


def raw_download(url: str, case: Case) -> Callable[[], object]:
    """Download all data files with obstore into one buffer, in parts that keep 8 readers busy."""
    sizes = {file.name: file.stat().st_size for file in case.folder.glob("*.distcp")}
    total = sum(sizes.values())
    buffer = memoryview(bytearray(total))
    rounds = -(-total // (CONNECTIONS * _REQUEST_BYTES))
    step = -(-total // (CONNECTIONS * rounds))
    parts: list[tuple[str, int, memoryview]] = []
    for name, size in sizes.items():
        file, buffer = buffer[:size], buffer[size:]
        parts += [(name, at, file[at : at + step]) for at in range(0, size, step)]

    def run() -> None:
        store = HTTPStore(f"{url}/{case.folder.name}", client_options={"allow_http": True})
        queue = deque(parts)

        def read(_: int) -> None:
            with suppress(IndexError):
                while True:
                    name, at, memory = queue.popleft()
                    memory[:] = obstore.get_range(store, name, start=at, length=len(memory))

        with ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(read, range(CONNECTIONS)))

    return run


def _rows(files: int, timings: Mapping[str, Timing], nbytes: int) -> list[tuple[str, ...]]:
    return [
        (
            str(files),
            name,
            f"{timing.median_s:.3f}",
            f"{nbytes / (1 << 20) / timing.median_s:.0f}",
            f"{timings[_TORCH].median_s / timing.median_s:.2f}",
            f"{timings[RAW].median_s / timing.median_s:.2f}",
            timing.spread,
        )
        for name, timing in timings.items()
    ]


def _bars(place: str, files: int, timings: Mapping[str, Timing]) -> list[Bar]:
    ours_s = timings[_OURS].median_s
    of_raw = Bar(
        name=f"HTTP, {place}, {files} file{'s' * (files > 1)}",
        value=timings[RAW].median_s / ours_s,
        limit=0.8 if place == "rated" else 0.85,
        unit="of obstore's download",
    )
    if place == "full":
        return [of_raw]
    value = timings[_TORCH].median_s / ours_s
    return [of_raw, Bar(name=of_raw.name, value=value, limit=_RATED[files], unit="x torch")]
