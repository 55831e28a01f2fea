"""``python -m benchmarks.against --rev REV``: what is slower now than it was at an old revision.

    git worktree of REV --src--> process "old" --.
                                                  >-- seconds --> ratios --> table, exit status
    the present tree ----src--> process "new" --'

Both processes have the same interpreter and read the same files, written by torch. They take
turns, old new, new old, and so on, so that a machine whose speed drifts slows both alike: a ratio
pairs two turns that follow each other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any, Final, Self, cast

from benchmarks.checkpoints import llama_shapes, warm, write
from benchmarks.command import count, machine, machine_text, quiet_torch, write_json
from benchmarks.results import Table
from benchmarks.table import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Comparison", "main", "table_of", "verdict"]

_REPOSITORY: Final = Path(__file__).parents[1]
_ROUNDS: Final = 7
#: Short loads scatter more, so a turn has at least three loads, and more in this time.
_TURN_S: Final = 1.0
#: For the end of a side; it may have worker processes to stop.
_PATIENCE_S: Final = 30
#: Below, a case counts as slower: paired turns scatter by some percent.
_AS_FAST: Final = 0.95
#: How many times faster than torch's reader the first read of metadata must be.
_FIRST_METADATA: Final = 4.0


# ----------------------------------------------------------------------------------------- cases


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A checkpoint: shapes of its tensors by name, and in how many files they are."""

    shapes: Mapping[str, tuple[int, ...]]
    files: int = 8
    zstd: bool = False

    def write(self, folder: Path, *, tiny: bool) -> None:
        shapes = self.shapes
        if tiny:
            first = islice(shapes.items(), 16)
            shapes = {name: tuple(min(n, 64) for n in shape) for name, shape in first}
        write(folder, shapes, files=self.files, zstd=self.zstd)


_LLAMA: Final = llama_shapes(5, 2048, 5632, 32_000)
#: 2 GiB together, so that all of them stay in the page cache of a small machine.
_CHECKPOINTS: Final = {
    "big": _Stored(shapes=_LLAMA),
    "one-file": _Stored(shapes=_LLAMA, files=1),
    "small": _Stored(shapes={f"small.{n:05}": (2048,) for n in range(50_000)}),
    "sliced": _Stored(shapes={f"matrix.{n}": (4096, 5632) for n in range(8)}),
    "zstd": _Stored(shapes={f"weights.{n:02}": (2048, 1024) for n in range(32)}, zstd=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of the table: which seconds it divides by which, as (side, part of the load)."""

    name: str
    old: tuple[str, str] = ("old", "whole")
    new: tuple[str, str] = ("new", "whole")
    at_least: float | None = _AS_FAST


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What both sides do with a checkpoint: an action of ``against_side``."""

    checkpoint: str
    lines: tuple[_Line, ...]
    action: str = "load"
    options: Mapping[str, Any] = field(default_factory=dict)


_CASES: Final = {
    "big": _Case(checkpoint="big", lines=(_Line(name="big tensors, 8 files"),)),
    "one-file": _Case(checkpoint="one-file", lines=(_Line(name="big tensors, 1 file"),)),
    "unverified": _Case(
        checkpoint="big",
        options={"verify": False},
        lines=(_Line(name="big tensors, verify=False"),),
    ),
    "processes": _Case(
        checkpoint="big",
        options={"executor": "processes"},
        lines=(_Line(name="big tensors, processes"),),
    ),
    "small": _Case(
        checkpoint="small",
        lines=(
            _Line(
                name="50,000 small tensors, read_data",
                old=("old", "read_data"),
                new=("new", "read_data"),
            ),
            _Line(name="50,000 small tensors, whole load"),
        ),
    ),
    "rows": _Case(checkpoint="sliced", action="rows", lines=(_Line(name="row slices"),)),
    "columns": _Case(checkpoint="sliced", action="columns", lines=(_Line(name="column slices"),)),
    "metadata": _Case(
        checkpoint="small",
        action="metadata",
        lines=(
            _Line(name="first metadata of 50,000", at_least=None),
            _Line(
                name="first metadata, torch as old",
                old=("new", "torch"),
                at_least=_FIRST_METADATA,
            ),
        ),
    ),
    "zstd": _Case(checkpoint="zstd", lines=(_Line(name="zstd"),)),
    "verify": _Case(checkpoint="big", action="verify", lines=(_Line(name="verify, big tensors"),)),
    "verify-small": _Case(
        checkpoint="small",
        action="verify",
        lines=(_Line(name="verify, 50,000 small tensors"),),
    ),
}


# --------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One line of the table.

    Attributes:
        name: for the table.
        old: seconds of each load, by round; at least one load in each.
        new: the same of the present tree.
        at_least: what the ratio must reach; ``None`` if it is only shown.
    """

    name: str
    old: Sequence[Sequence[float]]
    new: Sequence[Sequence[float]]
    at_least: float | None = _AS_FAST

    @property
    def old_s(self) -> float:
        """Median of all loads."""
        return median(chain.from_iterable(self.old))

    @property
    def new_s(self) -> float:
        """Median of all loads."""
        return median(chain.from_iterable(self.new))

    @property
    def ratio(self) -> float:
        """How many times faster the present tree is."""
        return self.old_s / self.new_s

    @property
    def paired(self) -> list[float]:
        """The same of each round."""
        return [median(old) / median(new) for old, new in zip(self.old, self.new, strict=True)]

    @property
    def is_short(self) -> bool:
        """Whether the ratio misses its limit."""
        return self.at_least is not None and self.ratio < self.at_least

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "name": self.name,
            "ratio": self.ratio,
            "at_least": self.at_least,
            "old_seconds": self.old,
            "new_seconds": self.new,
        }


def table_of(comparisons: Sequence[Comparison], title: str) -> Table:
    """One row for each comparison."""
    return Table(
        title=title,
        columns=("case", "old s", "new s", "old / new", "min..max of rounds", "at least"),
        rows=tuple(
            (
                one.name,
                f"{one.old_s:.3f}",
                f"{one.new_s:.3f}",
                f"{one.ratio:.2f}",
                f"{min(one.paired):.2f}..{max(one.paired):.2f}",
                "" if one.at_least is None else f"{one.at_least:g}",
            )
            for one in comparisons
        ),
    )


def verdict(comparisons: Sequence[Comparison]) -> str:
    """The line that names the cases whose ratio is below its limit."""
    short = [f"{one.name} ({one.ratio:.3f})" for one in comparisons if one.is_short]
    return f"below its limit: {', '.join(short)}" if short else "no case is below its limit"


# ----------------------------------------------------------------------------------- measurement


class _Side:
    """A process that has imported the paraload of one source folder."""

    def __init__(self, name: str, source: Path, *, turn_s: float) -> None:
        self._name = name
        self._turn_s = turn_s
        # PYTHONPATH comes before the editable install of the virtual environment.
        path = os.pathsep.join((str(source), str(_REPOSITORY)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.against_side", str(source)],
            cwd=_REPOSITORY,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C reaches a side once, through __exit__
        )
        self._requests = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            self._process.send_signal(signal.SIGINT)  # it may be in the middle of a turn
        try:
            self._process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def turn(self, case: _Case, folder: Path, *, checksum: bool) -> dict[str, Any]:
        """Seconds of the loads by part, and a checksum of what the last one loaded."""
        asked = {
            "action": case.action,
            "folder": str(folder),
            "options": dict(case.options),
            "turn_s": self._turn_s,
            "checksum": checksum,
        }
        answer = ""
        with suppress(BrokenPipeError):  # the side has ended, and the answer stays empty
            self._requests.write(json.dumps(asked) + "\n")
            self._requests.flush()
            answer = self._answers.readline()
        if not answer:
            raise RuntimeError(
                f"the {self._name} side ended with status {self._process.wait()}; see its traceback"
            )
        content: dict[str, Any] = json.loads(answer)
        return content


def _compared(
    case: _Case, folder: Path, sides: Mapping[str, _Side], *, rounds: int
) -> list[Comparison]:
    warm(folder.iterdir())
    seconds: dict[tuple[str, str], list[list[float]]] = {}
    for number in range(rounds):
        checksums = set()
        for name in ("old", "new") if number % 2 == 0 else ("new", "old"):
            answer = sides[name].turn(case, folder, checksum=number == 0)
            checksums.add(answer["checksum"])
            for part, values in answer["seconds"].items():
                seconds.setdefault((name, part), []).append(values)
        if len(checksums) != 1:
            raise RuntimeError(f"{case.lines[0].name}: the two sides loaded different bytes")
    return [
        Comparison(
            name=line.name,
            old=seconds[line.old],
            new=seconds[line.new],
            at_least=line.at_least,
        )
        for line in case.lines
    ]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_REPOSITORY), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def _worktree(commit: str, folder: Path) -> Iterator[Path]:
    _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _measure(options: argparse.Namespace) -> list[Comparison]:
    comparisons = []
    turn_s = 0.0 if options.tiny else _TURN_S
    with (
        tempfile.TemporaryDirectory(prefix="paraload-against-", dir=options.folder) as temporary,
        _worktree(options.rev, Path(temporary, "revision")) as revision,
        _Side("old", revision / "src", turn_s=turn_s) as old,
        _Side("new", _REPOSITORY / "src", turn_s=turn_s) as new,
    ):
        for name in options.cases:
            started = time.perf_counter()
            case = _CASES[name]
            folder = Path(temporary, case.checkpoint)
            if not folder.exists():
                _CHECKPOINTS[case.checkpoint].write(folder, tiny=options.tiny)
            comparisons += _compared(case, folder, {"old": old, "new": new}, rounds=options.rounds)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return comparisons


# --------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table and the verdict.

    Returns:
        the exit status: 1 if a case is below its limit.
    """
    options = _options(arguments)
    # The table makes room on standard output for JSON.
    out = sys.stderr if options.json == "-" else sys.stdout
    quiet_torch()
    comparisons = _measure(options)
    present = _git("describe", "--always", "--dirty", "--abbrev=12")
    title = f"{options.rev[:12]} (old) and {present} (new), {options.rounds} rounds"
    print_table(table_of(comparisons, title), out)
    print(machine_text(), file=out)
    print(verdict(comparisons), file=out)
    if options.json:
        figures = {
            "machine": machine(),
            "old": options.rev,
            "new": present,
            "cases": [one.to_dict() for one in comparisons],
        }
        write_json(options.json, figures)
    return int(any(one.is_short for one in comparisons))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against",
        description="Compare the present tree with an old revision.",
    )
    parser.add_argument("--rev", required=True, type=_commit, help="the old revision")
    parser.add_argument("--rounds", type=count, default=_ROUNDS, help="default: %(default)s")
    parser.add_argument(
        "--cases",
        type=_names,
        default=list(_CASES),
        metavar="NAME,...",
        help=f"measure only these: {', '.join(_CASES)}",
    )
    parser.add_argument(
        "--folder",
        type=os.path.abspath,  # the sides work in another folder
        help="where 2 GiB of checkpoints are written, and removed again",
    )
    parser.add_argument("--json", metavar="FILE", help="write all seconds; - is standard output")
    # Whether it works at all: the figures mean nothing then.
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _commit(text: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    except subprocess.CalledProcessError:
        raise argparse.ArgumentTypeError(f"git knows no commit {text!r}") from None


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in _CASES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_CASES)}")
    return names


if __name__ == "__main__":
    # A plain SIGTERM would leave checkpoints and worktree behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
