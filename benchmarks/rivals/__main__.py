"""``make bench-rivals``: tables, picture and the section of the README, from one run."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.cases import whole_case
from benchmarks.checkpoints import Checkpoints
from benchmarks.command import count, machine_text, quiet_torch, write_json
from benchmarks.page import RIVALS, seen_from
from benchmarks.rivals.chart import draw
from benchmarks.rivals.contest import Cache, bring, measure, probe
from benchmarks.rivals.contestants import ALWAYS, CONTESTANTS
from benchmarks.rivals.report import figures, rivals_table
from benchmarks.table import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.rivals.contest import Result
    from benchmarks.rivals.contestants import Contestant

_GROUPS: Final = tuple(dict.fromkeys(contestant.group for contestant in CONTESTANTS))
_LAYOUTS: Final = ((8, Cache.WARM), (8, Cache.COLD), (1, Cache.WARM))
#: Fewer when warm, where a run of everybody takes long and the spread is small.
_ROUNDS: Final = {Cache.WARM: 5, Cache.COLD: 7}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw.

    Returns:
        the exit status, always 0: what could not run is a row of the tables.
    """
    options = _options(arguments)
    # Tables make room on standard output for JSON.
    out = sys.stderr if options.json == "-" else sys.stdout
    quiet_torch()
    started = time.perf_counter()
    chosen = [c for c in CONTESTANTS if c.group in {*options.only, *ALWAYS}]
    failures = _failures(chosen, options.folder)
    results, tables, notes = [], [], [machine_text()]
    for result in _results([c for c in chosen if c.name not in failures], options, notes):
        results.append(result)
        tables.append(rivals_table(result, chosen, failures))
        print_table(tables[-1], out)
    print(f"{'; '.join(notes)}; {time.perf_counter() - started:.0f} s in all", file=out)
    if options.json:
        write_json(options.json, figures(results, chosen, failures) | {"notes": notes})
    if options.plot:
        draw(options.plot, [result for result in results if result.files > 1], chosen)
    if options.readme:
        picture = seen_from(options.readme, options.plot) if options.plot else None
        RIVALS.rewrite(options.readme, RIVALS.section(tables, "; ".join(notes), picture))
    return 0


def _failures(chosen: Sequence[Contestant], folder: str | None) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="paraload-probe-", dir=folder) as context:
        return probe(chosen, whole_case(Checkpoints(folder=Path(context)).tiny()))


def _results(
    runnable: Sequence[Contestant], options: argparse.Namespace, notes: list[str]
) -> Iterator[Result]:
    for files in dict.fromkeys(files for files, _ in _LAYOUTS):
        # Removed before the next: five formats take 7.3 GiB of disk and, worse, of page cache.
        with tempfile.TemporaryDirectory(prefix="paraload-rivals-", dir=options.folder) as context:
            case = whole_case(Checkpoints(folder=Path(context)).llama(files=files))
            for cache in (cache for n, cache in _LAYOUTS if n == files):
                try:
                    bring(cache, case)
                except (OSError, RuntimeError) as error:
                    notes.append(f"page cache {cache}: not measured, {error}")
                    continue
                # What runs once, while it is checked, would have no rounds to be interleaved with.
                able = [c for c in runnable if cache is Cache.WARM or not c.arm.is_slow]
                rounds = options.rounds or _ROUNDS[cache]
                yield measure(able, case, files=files, cache=cache, rounds=rounds)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument(
        "--only",
        type=_groups,
        default=_GROUPS,
        metavar="NAME,...",
        help=f"of {', '.join(_GROUPS)}; {', '.join(ALWAYS)} always run",
    )
    parser.add_argument("--rounds", type=count, help="rounds of every arm instead of the default")
    parser.add_argument("--folder", help="where checkpoints are written, and removed again")
    parser.add_argument("--json", metavar="FILE", help="write every figure; - is standard output")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw a bar chart")
    parser.add_argument(
        "--readme",
        metavar="FILE.md",
        type=RIVALS.page,
        help="rewrite the part that is between two comments",
    )
    options = parser.parse_args(arguments)
    if options.readme is not None and set(options.only) != set(_GROUPS):
        parser.error("--readme wants everybody: leave --only out")
    return options


def _groups(text: str) -> list[str]:
    groups = text.split(",")
    if unknown := [group for group in groups if group not in _GROUPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_GROUPS)}")
    return groups


if __name__ == "__main__":
    sys.exit(main())
