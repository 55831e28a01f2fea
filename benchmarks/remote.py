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

import paraload
from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.latency import delayed
from benchmarks.nginx import nginx
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import check_arms, time_rounds
from paraload.core.compat import FsspecReader
from paraload.sources.object_store import ObjectStoreSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["CONNECTIONS", "HEADLINE", "MIB_PER_SECOND", "RAW", "measure", "raw_download"]

#: More without a limit, where loads are short and other programs disturb them most.
_ROUNDS: Final = {"rated": 3, "full": 9}
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
_COLUMNS: Final = (
    "files",
    f"{_TORCH} s",
    f"{RAW} s",
    f"{_OURS} s",
    "x torch",
    "of raw",
    "min..max s",
    f"{_DEFAULT} s",
    "x torch",
)

_LATENCY_S: Final = 0.05


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 258 MiB from 1 to 16 files, and 10,000 tensors from far away."""
    tables, bars, figures = [], list[Bar](), {}
    with nginx(checkpoints.folder, bytes_per_second=MIB_PER_SECOND << 20) as url:
        for place, layouts in (("rated", tuple(_RATED)), ("full", _UNLIMITED)):
            rows = []
            for files in layouts:
                case = whole_case(checkpoints.remote(files=files))
                timings = _timings(f"{url}/{place}", case, rounds or _ROUNDS[place])
                rows.append(_row(files, timings))
                bars += _bars(place, files, timings)
                figures[f"{place}, {files}"] = {n: t.to_dict() for n, t in timings.items()}
            rate = f"{MIB_PER_SECOND} MiB/s for each connection" if place == "rated" else "no limit"
            mib = case.payload_bytes / (1 << 20)
            title = f"{mib:.0f} MiB over HTTP, whole loads, {rate}"
            tables.append(Table(title=title, columns=_COLUMNS, rows=tuple(rows)))
        case = whole_case(checkpoints.medium())
        requests: dict[str, int] = {}
        with delayed(url, latency_s=_LATENCY_S) as (far, count):
            timings = _timings(
                f"{far}/full", case, rounds or _ROUNDS["rated"], partial(_counted, requests, count)
            )
    ideal = _fewest_requests(case)
    tables.append(_latency_table(timings, requests, ideal, len(case.targets)))
    bars += _latency_bars(timings, requests, ideal)
    figures["latency"] = {n: t.to_dict() | {"requests": requests[n]} for n, t in timings.items()}
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


def _counted(
    requests: dict[str, int], count: Callable[[], int], name: str, run: Callable[[], object]
) -> None:
    before = count()
    run()
    requests[name] = count() - before


def _fewest_requests(case: Case) -> int:
    """One for the size of each file, and then as few as the longest ones allow."""
    longest = ObjectStoreSource.limits.max_request_bytes
    return sum(1 - -file.stat().st_size // longest for file in case.folder.iterdir())


def _timings(
    url: str,
    case: Case,
    rounds: int,
    around: Callable[[str, Callable[[], object]], None] | None = None,
) -> dict[str, Timing]:
    def ours(**options: Any) -> None:
        paraload.load(dict(case.targets), f"{url}/{case.folder.name}", no_dist=True, **options)

    def stock() -> None:
        reader = FsspecReader(f"{url}/{case.folder.name}")
        dcp.load(dict(case.targets), storage_reader=reader, no_dist=True)

    runs: dict[str, Callable[[], object]] = {
        _TORCH: stock,
        _OURS: partial(ours, max_workers=CONNECTIONS),
        _DEFAULT: ours,
        RAW: raw_download(url, case),
    }
    if around is not None:
        runs = {name: partial(around, name, run) for name, run in runs.items()}
    contestants = [
        arms.Arm(name=name, prepare=partial(_prepared, run))
        for name, run in runs.items()
        if name != RAW  # which downloads into memory of its own
    ]
    _, checked = check_arms(contestants, case)
    del runs[_TORCH]  # which takes so long that this run is enough
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


def _row(files: int, timings: Mapping[str, Timing]) -> tuple[str, ...]:
    stock, raw, ours, default = (timings[name] for name in (_TORCH, RAW, _OURS, _DEFAULT))
    return (
        str(files),
        f"{stock.median_s:.2f}",
        f"{raw.median_s:.2f}",
        f"{ours.median_s:.2f}",
        f"{stock.median_s / ours.median_s:.1f}",
        f"{raw.median_s / ours.median_s:.2f}",
        ours.spread,
        f"{default.median_s:.2f}",
        f"{stock.median_s / default.median_s:.1f}",
    )


def _latency_table(
    timings: Mapping[str, Timing], requests: Mapping[str, int], ideal: int, tensors: int
) -> Table:
    return Table(
        title=(
            f"{tensors:,} tensors of 64 KiB in 8 files over HTTP, whole loads, "
            f"{_LATENCY_S * 1000:.0f} ms for each request, {ideal} of which would do"
        ),
        columns=("arm", "median s", "x torch", "of raw", "requests", "x fewest", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{timings[_TORCH].median_s / timing.median_s:.1f}",
                f"{timings[RAW].median_s / timing.median_s:.2f}",
                str(requests[name]),
                f"{requests[name] / ideal:.2f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )


def _latency_bars(
    timings: Mapping[str, Timing], requests: Mapping[str, int], ideal: int
) -> list[Bar]:
    name = f"HTTP, {_LATENCY_S * 1000:.0f} ms for each request"
    value = timings[_TORCH].median_s / timings[_DEFAULT].median_s
    return [
        Bar(name=name, value=value, limit=10.0, unit="x torch"),
        Bar(
            name=name,
            value=requests[_DEFAULT] / ideal,
            limit=1.1,
            unit="x the fewest requests",
            at_most=True,
        ),
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
