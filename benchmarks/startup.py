"""Start-up: what an import costs, and what worker processes cost a small load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import Timing, measure_arms, time_rounds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.checkpoints import Checkpoints
    from paraload import ReadProgress

__all__ = ["measure"]

_ROUNDS: Final = 9

#: The clock runs inside of the fresh interpreter, so that only the import counts.
_IMPORT: Final = """
import json, sys, time
started = time.perf_counter()
import paraload
print(json.dumps([time.perf_counter() - started, "torch" in sys.modules]))
"""


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Import in fresh interpreters; load 16 MiB with and without worker processes."""
    rounds = rounds or _ROUNDS
    imports, import_bars, import_figures = _imports(rounds)
    loads, load_figures = _loads(checkpoints.tiny(), rounds)
    return Section(tables=(imports, loads), bars=import_bars, figures=import_figures | load_figures)


def _imports(rounds: int) -> tuple[Table, tuple[Bar, ...], dict[str, Any]]:
    found = [_import_once() for _ in range(rounds)]
    with_torch = any(torch_came for _, torch_came in found)
    timings = {
        "import paraload, in its interpreter": Timing(seconds=tuple(s for s, _ in found))
    } | time_rounds(
        {
            "python -c 'import paraload'": lambda: _python("import paraload"),
            "python -c pass": lambda: _python("pass"),
        },
        rounds=rounds,
    )
    table = Table(
        title=f"Import: torch comes with it: {'yes' if with_torch else 'no'}",
        columns=("what", "median ms", "min..max s"),
        rows=tuple((name, f"{t.median_s * 1000:.1f}", t.spread) for name, t in timings.items()),
    )
    import_ms = next(iter(timings.values())).median_s * 1000
    bars = (
        Bar(name="import paraload", value=import_ms, limit=50, unit="ms", at_most=True),
        Bar(name="torch imported by it", value=with_torch, limit=0, unit="", at_most=True),
    )
    return table, bars, {name: timing.to_dict() for name, timing in timings.items()}


def _import_once() -> tuple[float, bool]:
    output = subprocess.run(
        [sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True
    ).stdout
    seconds, torch_came = json.loads(output)
    return seconds, torch_came


def _python(code: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def _loads(folder: Path, rounds: int) -> tuple[Table, dict[str, Any]]:
    case = whole_case(folder)
    contestants = [arms.stock(), *map(arms.parallel, ("threads", "processes", "pool"))]
    timings = measure_arms(contestants, case, rounds=rounds).timings
    first = {
        f"paraload {executor}": _first_result_ms(folder, executor)
        for executor in ("threads", "processes", "pool")
    }
    table = Table(
        title="Start of the executors: 16 MiB in 8 files",
        columns=("arm", "first result ms", "whole load ms", "min..max s"),
        rows=tuple(
            (
                name,
                f"{first[name]:.1f}" if name in first else "",
                f"{timing.median_s * 1000:.1f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return table, figures | {f"{name}, first result ms": value for name, value in first.items()}


def _first_result_ms(folder: Path, executor: str) -> float:
    ticks: list[float] = []

    def tick(_: ReadProgress, /) -> None:
        ticks.append(time.perf_counter())

    prepared = arms.parallel(executor, progress=tick).prepare(whole_case(folder))
    started = time.perf_counter()
    prepared.run()
    return (ticks[0] - started) * 1000
