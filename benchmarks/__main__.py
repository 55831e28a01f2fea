"""``python -m benchmarks``: measure, print, and with ``--check`` insist."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import (
    big,
    cold,
    fresh,
    headlines,
    memory,
    metadata,
    planning,
    ranks,
    rated_table,
    remote,
    safetensors_files,
    slices,
    small,
    startup,
    verifying,
    whole,
    zstd,
)
from benchmarks.checkpoints import Checkpoints
from benchmarks.command import count, machine, machine_text, quiet_torch, write_json
from benchmarks.page import BENCH
from benchmarks.table import bars_table, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.results import Section, Table

_SECTIONS: Final[dict[str, Callable[[Checkpoints, int | None], Section]]] = {
    # Memory first: it starts processes, and this one is still small.
    "memory": memory.measure,
    "startup": startup.measure,
    # Torch's reader makes a whole tensor for each slice. A process that begins to load pays for
    # its pages; behind the other parts it would find them in the heap that they have left.
    "slices": slices.measure,
    "big": big.measure,
    "safetensors": safetensors_files.measure,
    "cold": cold.measure,
    "fresh": fresh.measure,
    "small": small.measure,
    "metadata": metadata.measure,
    "whole": whole.measure,
    "zstd": zstd.measure,
    "verify": verifying.measure,
    "planning": planning.measure,
    "ranks": ranks.measure,
    "rated": rated_table.measure,
    "remote": remote.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen measurements.

    Returns:
        the exit status: 1 if ``--check`` was asked for and a bar was missed.
    """
    options = _options(arguments)
    # Tables make room on standard output for JSON.
    out = sys.stderr if options.json == "-" else sys.stdout
    quiet_torch()
    sections: dict[str, Section] = {}
    seconds: dict[str, float] = {}
    tables: list[Table] = []
    with tempfile.TemporaryDirectory(prefix="paraload-bench-", dir=options.folder) as folder:
        checkpoints = Checkpoints(folder=Path(folder))
        for name, measure in _SECTIONS.items():
            if name in options.only:
                started = time.perf_counter()
                sections[name] = measure(checkpoints, options.rounds)
                seconds[name] = time.perf_counter() - started
                for table in sections[name].tables:
                    print_table(table, out)
                    tables.append(table)
    bars = [bar for section in sections.values() for bar in section.bars]
    if bars:
        tables.append(bars_table(bars))
        print_table(tables[-1], out)
    each = ", ".join(f"{name} {took:.0f}" for name, took in seconds.items())
    notes = f"{machine_text()}; {sum(seconds.values()):.0f} s in all ({each})"
    print(notes, file=out)
    if options.readme:
        BENCH.rewrite(options.readme, BENCH.section(tables, notes))
    for page in options.front:
        headlines.rewrite(page, sections, machine_text())
    if options.json:
        write_json(options.json, _figures(sections))
    return int(options.check and not all(bar.passed for bar in bars))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_names,
        default=list(_SECTIONS),
        metavar="NAME,...",
        help=f"measure only these: {', '.join(_SECTIONS)}",
    )
    parser.add_argument("--rounds", type=count, help="rounds of every arm instead of the default")
    parser.add_argument("--folder", help="where checkpoints are written, and removed again")
    parser.add_argument("--json", metavar="FILE", help="write every figure; - is standard output")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument(
        "--readme", metavar="FILE.md", type=BENCH.page, help="rewrite the part between two comments"
    )
    parser.add_argument(
        "--front",
        metavar="FILE.md",
        type=headlines.page,
        action="append",
        default=[],
        help="put figures between the comments of this page",
    )
    options = parser.parse_args(arguments)
    for page in options.front:
        if missing := headlines.parts_of(page) - set(options.only):
            parser.error(f"--front {page} wants the parts {', '.join(sorted(missing))} too")
    if options.readme is not None and set(options.only) != set(_SECTIONS):
        parser.error("--readme wants everything: leave --only out")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in _SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_SECTIONS)}")
    return names


def _figures(sections: Mapping[str, Section]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "figures": {name: section.figures for name, section in sections.items()},
        "bars": [bar.to_dict() for section in sections.values() for bar in section.bars],
    }


if __name__ == "__main__":
    sys.exit(main())
