"""``paraload bench PATH``: torch's reader and paraload's settings on the user's own checkpoint.

    plan, measure   measure: readers that load a _bench_case, page cache warm and cold
    advise          _bench_advice
    show            show, plot

Nothing is ever written to the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from paraload.cli import _checkpoint as checkpoint
from paraload.cli import _output as output
from paraload.cli._errors import UsageError
from paraload.options import EXECUTORS, MOST_WORKERS

_EXECUTORS: Final = tuple(name for name in EXECUTORS if name != "auto")


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "bench",
        help="measure torch's reader and paraload here, and recommend a setting",
        description="Measure how fast torch's FileSystemReader and paraload read this checkpoint"
        " here, with the page cache warm and cold, and recommend a setting. The checkpoint is never"
        " written to.",
        epilog="Cold means that the files are not in this machine's page cache; what the storage"
        " itself caches, no program can drop. Exit status: 1 also if an arm failed.",
    )
    add = parser.add_argument
    add("path", metavar="PATH", help="folder of the checkpoint")
    for option, kind, default, metavar, about in (
        ("--workers", _counts, "1,2,4,8,16", "N,...", "readers at once"),
        ("--executors", _executors, "threads,processes", "NAME,...", f"of {', '.join(_EXECUTORS)}"),
        ("--rounds", _count, "5", "N", "runs of every reader"),
    ):
        text = f"{about} (default: {default})"
        add(option, type=kind, default=default, metavar=metavar, help=text)
    limit = "read about so much of it (default: 2GiB, or a quarter of the free memory if less)"
    add("--limit-bytes", metavar="SIZE", help=limit)
    add("--no-cold", action="store_true", help="measure with a warm cache only")
    add("--plot", metavar="FILE", help="draw the result, such as out.png")
    output.add_json_option(parser)
    output.add_trace_option(parser, "what each worker of the recommended setting read when")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan, measure, show; 1 if an arm failed."""
    path = checkpoint.existing_folder(arguments.path)
    _check_targets(arguments, path)
    metadata = checkpoint.read_metadata(path).metadata

    from paraload.cli.bench import measure, show  # noqa: PLC0415 - these import torch

    bench = measure.Bench(path, metadata, arguments)
    is_shown = arguments.json != output.STANDARD_OUTPUT
    if is_shown:
        show.show_plan(bench)
    measure.measure(bench)
    if is_shown:
        show.show_result(bench)
    output.write_json(show.to_dict(bench), arguments.json)
    if arguments.plot is not None:
        from paraload.cli.bench import plot  # noqa: PLC0415 - an extra

        plot.write_plot(bench, arguments.plot)
    if arguments.trace is not None:
        if bench.shown is None:
            raise UsageError(f"--trace {arguments.trace}: no setting of paraload could be measured")
        output.write_trace(bench.shown[1], arguments.trace)
    return int(any(arm.error is not None for arm in bench.arms))


def _check_targets(arguments: argparse.Namespace, path: Path) -> None:
    """Refuse what cannot be written before the work, not after it."""
    output.check_json_target(arguments.json)
    output.check_file_target("--trace", arguments.trace)
    output.check_file_target("--plot", arguments.plot)
    for option in ("json", "trace", "plot"):
        target = getattr(arguments, option)
        if target is not None and Path(target).resolve().is_relative_to(path.resolve()):
            raise UsageError(f"--{option} {target}: is in the checkpoint, which is only read")
    if arguments.plot is not None:
        try:
            from paraload.cli.bench import plot  # noqa: PLC0415 - an extra
        except ImportError as error:
            hint = "pip install paraload[bench]"
            raise UsageError(f"--plot needs matplotlib ({error}): {hint}") from error
        plot.check_format(arguments.plot)


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
