"""``paraload bench PATH``: torch's reader and paraload's settings on the user's own checkpoint.

    plan        _bench_run.make_plan    _bench_case: what is read; _bench_arms: by which readers
    measure     _bench_run.measure      _rounds, _page_cache, _memory
    advise      _bench_advice
    show        _bench_show, _bench_plot, JSON and trace, all from one _bench_result.Result

Nothing is ever written to the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paraload.cli import _checkpoint as checkpoint
from paraload.cli._errors import UsageError
from paraload.cli._output import (
    STANDARD_OUTPUT,
    add_json_option,
    add_trace_option,
    check_file_target,
    check_json_target,
    write_json,
    write_trace,
)
from paraload.options import EXECUTORS, MOST_WORKERS, parse_bytes

if TYPE_CHECKING:
    from paraload.cli._bench_result import Result

__all__ = ["add_parser", "run"]

_EXECUTORS: Final = tuple(name for name in EXECUTORS if name != "auto")


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "bench",
        help="measure torch's reader and paraload here, and recommend a setting",
        description="Measure how fast torch's FileSystemReader and paraload read this checkpoint"
        " here, the raw limit beside them, with the page cache warm and cold. Recommends a setting."
        " Only reads: the checkpoint is never written to.",
        epilog="Cold means that the files are not in this machine's page cache; what the storage"
        " itself caches, no program can drop. Exit status: 1 also if an arm failed.",
    )
    parser.add_argument("path", metavar="PATH", help="folder of the checkpoint")
    for option, kind, default, metavar, what in (
        ("--workers", _counts, "1,2,4,8,16", "N,...", "readers at once"),
        ("--executors", _executors, "threads,processes", "NAME,...", f"of {', '.join(_EXECUTORS)}"),
        ("--rounds", _count, "5", "N", "runs of every arm"),
    ):
        about = f"{what} (default: {default})"
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=about)
    parser.add_argument(
        "--limit-bytes",
        metavar="SIZE",
        help="read about so much of the checkpoint, such as 8GiB (default: 2 GiB, or a quarter of"
        " the free memory if that is less)",
    )
    parser.add_argument("--no-cold", action="store_true", help="measure with a warm cache only")
    parser.add_argument("--plot", metavar="FILE", help="draw the result, such as out.png")
    add_json_option(parser)
    add_trace_option(parser, "what each worker of the recommended setting read when")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan, measure, show; 1 if an arm failed."""
    path = checkpoint.existing_folder(arguments.path)
    _check_targets(arguments, path)
    limit_bytes = None if arguments.limit_bytes is None else parse_bytes(arguments.limit_bytes)
    metadata = checkpoint.read_metadata(path).metadata

    from paraload.cli import _bench_run as bench  # noqa: PLC0415 - imports torch
    from paraload.cli._bench_show import show_plan, show_result  # noqa: PLC0415 - likewise

    is_shown = arguments.json != STANDARD_OUTPUT
    plan = bench.make_plan(
        path,
        metadata,
        executors=arguments.executors,
        workers=arguments.workers,
        rounds=arguments.rounds,
        limit_bytes=limit_bytes,
        with_cold=not arguments.no_cold,
    )
    if is_shown:
        show_plan(plan)
    result = bench.measure(plan)
    if is_shown:
        show_result(result)
    _write_files(arguments, result)
    return 1 if result.failed else 0


def _check_targets(arguments: argparse.Namespace, path: Path) -> None:
    """Refuse what cannot be written before the work, not after it."""
    check_json_target(arguments.json)
    check_file_target("--trace", arguments.trace)
    check_file_target("--plot", arguments.plot)
    for option in ("json", "trace", "plot"):
        target = getattr(arguments, option)
        if target is not None and Path(target).resolve().is_relative_to(path.resolve()):
            raise UsageError(f"--{option} {target}: is in the checkpoint, which is only read")
    if arguments.plot is not None:
        try:
            from paraload.cli import _bench_plot as plot  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError(
                f"--plot needs matplotlib ({error}): pip install paraload[bench]"
            ) from error
        plot.check_format(arguments.plot)


def _write_files(arguments: argparse.Namespace, result: Result) -> None:
    write_json(result.to_dict(), arguments.json)
    if arguments.plot is not None:
        from paraload.cli._bench_plot import write_plot  # noqa: PLC0415 - an extra

        write_plot(result, arguments.plot)
    if arguments.trace is not None:
        if result.shown is None:
            raise UsageError(f"--trace {arguments.trace}: no setting of paraload could be measured")
        write_trace(result.shown[1], arguments.trace)


def _counts(text: str) -> list[int]:
    counts = sorted({_count(word) for word in text.split(",")})
    if counts[-1] > MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"expected {MOST_WORKERS} or less, got {counts[-1]}")
    return counts


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def _executors(text: str) -> list[str]:
    names = [word.strip() for word in text.split(",")]
    if unknown := [name for name in names if name not in _EXECUTORS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(_EXECUTORS)}")
    return list(dict.fromkeys(names))
