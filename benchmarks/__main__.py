"""``python -m benchmarks``: measure, print, and with ``--check`` insist."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from benchmarks import big, memory, planning, rated_table, slices, small, startup, zstd
from benchmarks.checkpoints import Checkpoints
from benchmarks.table import bars_table, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.results import Section

_SECTIONS: Final[dict[str, Callable[[Checkpoints, int | None], Section]]] = {
    # Memory first: it starts processes, and this one is still small.
    "memory": memory.measure,
    "startup": startup.measure,
    "big": big.measure,
    "slices": slices.measure,
    "small": small.measure,
    "zstd": zstd.measure,
    "planning": planning.measure,
    "rated": rated_table.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen measurements.

    Returns:
        the exit status: 1 if ``--check`` was asked for and a bar was missed.
    """
    options = _parser().parse_args(arguments)
    # Tables make room on standard output for JSON.
    out = sys.stderr if options.json == "-" else sys.stdout
    # torch says that there is no process group, which is so on purpose.
    warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    sections: dict[str, Section] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="paraload-bench-", dir=options.folder) as folder:
        checkpoints = Checkpoints(folder=Path(folder))
        for name, measure in _SECTIONS.items():
            if name in options.only:
                sections[name] = measure(checkpoints, options.rounds)
                for table in sections[name].tables:
                    print_table(table, out)
    bars = [bar for section in sections.values() for bar in section.bars]
    if bars:
        print_table(bars_table(bars), out)
    print(f"{_machine_text()}; {time.perf_counter() - started:.0f} s in all", file=out)
    if options.json:
        _write_json(options.json, sections)
    return int(options.check and not all(bar.passed for bar in bars))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_names,
        default=list(_SECTIONS),
        metavar="NAME,...",
        help=f"measure only these: {', '.join(_SECTIONS)}",
    )
    parser.add_argument("--rounds", type=_count, help="rounds of every arm instead of the default")
    parser.add_argument("--folder", help="where checkpoints are written, and removed again")
    parser.add_argument("--json", metavar="FILE", help="write every figure; - is standard output")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in _SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_SECTIONS)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds")
    return int(text)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _machine_text() -> str:
    return ", ".join(f"{name}: {value}" for name, value in _machine().items())


def _write_json(target: str, sections: Mapping[str, Section]) -> None:
    content = {
        "machine": _machine(),
        "figures": {name: section.figures for name, section in sections.items()},
        "bars": [bar.to_dict() for section in sections.values() for bar in section.bars],
    }
    text = json.dumps(content, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
