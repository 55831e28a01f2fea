"""``python -m benchmarks.rivals.s3``: whole loads from an S3 server, against its other readers.

The server is nginx on this machine, which gives each connection a rate, as S3 does, or no limit.

Each contestant has a process of its own, since clients keep threads and caches. They take turns: in
each round each of them loads once, in an order that each round shuffles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.checkpoints import Checkpoints
from benchmarks.command import count, machine_text, quiet_torch, write_json
from benchmarks.nginx import nginx
from benchmarks.page import RIVALS_S3
from benchmarks.remote import MIB_PER_SECOND, RAW
from benchmarks.rivals.contest import Result, prepare, probe
from benchmarks.rivals.contestants import Side
from benchmarks.rivals.formats import DCP, SAFETENSORS, in_format
from benchmarks.rivals.report import figures, rivals_table
from benchmarks.rivals.s3_contestants import s3_contestants
from benchmarks.rounds import Timing, check_arms, interleaved, timed
from benchmarks.table import print_table
from paraload.cli.bench.others import Others

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.cases import Case
    from benchmarks.rivals.contestants import Contestant

__all__ = ["main"]

_PLACES: Final = {
    "rated": f"S3, {MIB_PER_SECOND} MiB/s for each connection",
    "full": "S3, no limit",
}
_LAYOUTS: Final = (("rated", 8), ("rated", 1), ("full", 8))
_ROUNDS: Final = 5
#: One run of those that take longer is enough.
_SLOW_S: Final = 6.0


@dataclass(frozen=True, slots=True)
class _Load:
    """Who loads what from where: what a contestant's process is asked for."""

    name: str
    endpoint: str
    bucket: str
    folder: Path


class _Processes:
    """One for each contestant, which is started when it is first asked for something."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._pools: dict[str, ProcessPoolExecutor] = {}

    def load(self, name: str, bucket: str, folder: Path) -> _Load:
        return _Load(name, self._endpoint, bucket, folder)

    def ask(self, question: Callable[[_Load], Any], name: str, bucket: str, folder: Path) -> Any:
        """Let the process of that contestant answer; raises what it raises."""
        if name not in self._pools:
            self._pools[name] = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._pools[name].submit(question, self.load(name, bucket, folder)).result()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown()


# --------------------------------------------------------------------------- in its process


@lru_cache(maxsize=1)  # the targets of the case before need not stay in memory
def _ready(load: _Load) -> tuple[Contestant, Case]:
    quiet_torch()
    contestants = {c.name: c for c in s3_contestants(load.endpoint, load.bucket)}
    return contestants[load.name], whole_case(load.folder)


def _failure(load: _Load) -> str | None:
    contestant, case = _ready(load)
    return probe([contestant], case).get(load.name)


def _checked(load: _Load) -> Timing:
    contestant, case = _ready(load)
    if contestant.side is Side.LIMIT:  # it downloads into memory of its own
        return Timing(seconds=(_seconds(load),))
    arm = arms.Arm(name=load.name, prepare=partial(prepare, contestant))
    _, timings = check_arms([arms.stock(), arm], case)
    return timings[load.name]


def _seconds(load: _Load) -> float:
    contestant, case = _ready(load)
    return timed(prepare(contestant, case).run)


# --------------------------------------------------------------------------- in this process


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, rewrite the page.

    Returns:
        the exit status, always 0: what could not run is a row of the tables.
    """
    options = _options(arguments)
    # Tables make room on standard output for JSON.
    out = sys.stderr if options.json == "-" else sys.stdout
    quiet_torch()
    started = time.perf_counter()
    results, tables = [], []
    with tempfile.TemporaryDirectory(prefix="paraload-rivals-s3-", dir=options.folder) as folder:
        checkpoints = Checkpoints(folder=Path(folder))
        cases = {files: whole_case(checkpoints.remote(files=files)) for _, files in _LAYOUTS}
        tiny = whole_case(checkpoints.tiny())
        for case, written in product([tiny, *cases.values()], (DCP, SAFETENSORS)):
            with suppress(ImportError):  # the contestants that read this format will report it
                in_format(case, written)
        with (
            nginx(checkpoints.folder, bytes_per_second=MIB_PER_SECOND << 20) as endpoint,
            closing(_Processes(endpoint)) as processes,
        ):
            contestants = s3_contestants(endpoint, "full")
            failures = _failures(processes, contestants, tiny.folder)
            names = [c.name for c in contestants if c.name not in failures]
            for bucket, files in _LAYOUTS:
                ask = partial(processes.ask, bucket=bucket, folder=cases[files].folder)
                others = Others()
                timings = _timings(ask, names, options.rounds or _ROUNDS)
                results.append(
                    Result(
                        files=files,
                        place=_PLACES[bucket],
                        payload_bytes=cases[files].payload_bytes,
                        timings=timings,
                        others_cores=others.cores(),
                    )
                )
                tables.append(rivals_table(results[-1], contestants, failures, limit=RAW))
                print_table(tables[-1], out)
    notes = f"{machine_text()}; {time.perf_counter() - started:.0f} s in all"
    print(notes, file=out)
    if options.json:
        write_json(options.json, figures(results, contestants, failures) | {"notes": [notes]})
    if options.readme:
        RIVALS_S3.rewrite(options.readme, RIVALS_S3.section(tables, notes))
    return 0


def _failures(
    processes: _Processes, contestants: Sequence[Contestant], folder: Path
) -> dict[str, str]:
    answers = {c.name: processes.ask(_failure, c.name, "full", folder) for c in contestants}
    return {name: failure for name, failure in answers.items() if failure is not None}


def _timings(ask: Callable[..., Any], names: Sequence[str], rounds: int) -> dict[str, Timing]:
    once: dict[str, Timing] = {name: ask(_checked, name) for name in names}
    seconds: dict[str, list[float]] = {
        name: [] for name, timing in once.items() if timing.median_s < _SLOW_S
    }
    for _, name in interleaved(list(seconds), rounds=rounds):
        seconds[name].append(ask(_seconds, name))
    return once | {name: Timing(seconds=tuple(values)) for name, values in seconds.items()}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals.s3", description=__doc__)
    parser.add_argument("--rounds", type=count, help="rounds of every arm instead of the default")
    parser.add_argument("--folder", help="where checkpoints are written, and removed again")
    parser.add_argument("--json", metavar="FILE", help="write every figure; - is standard output")
    parser.add_argument(
        "--readme",
        metavar="FILE.md",
        type=RIVALS_S3.page,
        help="rewrite the part that is between two comments",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
