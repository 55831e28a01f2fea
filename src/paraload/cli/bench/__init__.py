"""``paraload bench PATH``: torch's reader and paraload's settings on the user's own checkpoint.

    case --> measure: all readers load it, page cache warm and cold --> advice --> show, plot

The checkpoint is only read.
"""

import argparse
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

from paraload.cli import _checkpoint as checkpoint
from paraload.cli._arguments import (
    STANDARD_OUTPUT,
    UsageError,
    add_json_option,
    add_path,
    add_trace_option,
    number_of_bytes,
    target_file,
)
from paraload.cli._output import write_json, write_trace
from paraload.options import EXECUTORS, MOST_WORKERS

_EXECUTORS: Final = tuple(name for name in EXECUTORS if name != "auto")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure torch's reader and paraload here, and recommend a setting",
        description="Measure how fast torch's reader and paraload read this checkpoint here, with"
        " the page cache warm and cold, and recommend a setting. The checkpoint is only read.",
        epilog="Cold means that the files are not in this machine's page cache; caches of the"
        " storage itself cannot be dropped, so a URL is measured as it is. Exit status: 1 also if"
        " an arm failed.",
    )
    add = parser.add_argument
    add_path(parser)
    about = "concurrent readers (default: 1,2,4,8,16; for a URL 4,8,16,32,64)"
    add("--workers", type=_counts, metavar="N,...", help=about)
    about = f"of {', '.join(_EXECUTORS)} (default: threads,processes; for a URL threads)"
    add("--executors", type=_executors, metavar="NAME,...", help=about)
    about = "runs of every reader (default: 5)"
    add("--rounds", type=_count, default="5", metavar="N", help=about)
    limit, plot = partial(number_of_bytes, "--limit-bytes"), partial(target_file, "--plot")
    about = "read about this much (default: 2GiB, or a quarter of the free memory if less)"
    add("--limit-bytes", type=limit, metavar="SIZE", help=about)
    add("--no-cold", action="store_true", help="measure with a warm cache only")
    add("--plot", type=plot, metavar="FILE", help="draw the result, such as out.png")
    add_json_option(parser)
    add_trace_option(parser, "when each worker of the recommended setting read what")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    _check_targets(arguments)

    from paraload.adapters.dcp.reader_choice import (  # noqa: PLC0415 - imports torch
        metadata_of_all,
        source_of,
    )

    reader = checkpoint.open_reader(arguments)
    with closing(source_of(reader)):
        index = metadata_of_all(reader).index

    from paraload.cli.bench import measure, show  # noqa: PLC0415 - these import torch
    from paraload.cli.bench.subject import subject_of  # noqa: PLC0415

    subject = subject_of(reader, arguments.path, dict(arguments.storage), index)
    bench = measure.Bench(subject, index, arguments)
    is_shown = arguments.json != STANDARD_OUTPUT
    if is_shown:
        show.show_plan(bench)
    measure.measure(bench)
    if is_shown:
        show.show_result(bench)
    write_json(show.to_dict(bench), arguments.json)
    if arguments.plot is not None:
        from paraload.cli.bench import plot  # noqa: PLC0415 - an extra

        plot.write_plot(bench, arguments.plot)
    if arguments.trace is not None:
        if bench.shown is None:
            raise UsageError(f"--trace {arguments.trace}: no setting of paraload could be measured")
        write_trace(bench.shown[1], arguments.trace)
    return int(any(arm.error is not None for arm in bench.arms))


def _check_targets(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be written before the work, not after it."""
    folder = arguments.path.resolve() if isinstance(arguments.path, Path) else None
    for option in ("json", "trace", "plot"):
        name = getattr(arguments, option)
        if folder is None or name in {None, STANDARD_OUTPUT}:
            continue
        if Path(name).resolve().is_relative_to(folder):
            raise UsageError(f"--{option} {name}: is in the checkpoint, which is only read")
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
    names = dict.fromkeys(word.strip() for word in text.split(","))
    for name in names:
        if name not in _EXECUTORS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(_EXECUTORS)}")
    return list(names)
