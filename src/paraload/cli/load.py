"""``paraload load PATH``: read a whole checkpoint into memory, check it, report the speed."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from paraload.cli import _checkpoint as checkpoint
from paraload.cli._arguments import (
    STANDARD_OUTPUT,
    add_json_option,
    add_path,
    add_reading_options,
    add_trace_option,
    number_of_bytes,
    reading_options,
)
from paraload.cli._output import say, write_json, write_trace
from paraload.errors import CheckpointReadError, ItemReadError
from paraload.options import EXECUTORS
from paraload.report import ReadReport

if TYPE_CHECKING:
    from paraload.adapters.dcp.reader_choice import Reader


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "load",
        help="read everything, and report how it went",
        description="Read every tensor and object of a checkpoint into memory, and check CRC-32s."
        " Objects are read but not unpickled.",
    )
    add_path(parser)
    add_reading_options(parser)
    add, check = parser.add_argument, partial(number_of_bytes, "--memory-budget")
    add("--executor", choices=EXECUTORS, help="what runs the readers (default: auto)")
    add(
        "--memory-budget",
        dest="memory_budget_bytes",
        type=check,
        metavar="SIZE",
        help="limit for staging memory, such as 256MiB",
    )
    add("--no-verify", dest="verify", action="store_const", const=False, help="skip CRC-32 checks")
    add_json_option(parser)
    add_trace_option(parser, "when each worker read what")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    reader = checkpoint.open_reader(arguments, reading_options(arguments))
    path = str(reader.path)
    try:
        report = _load(reader)
    except CheckpointReadError as error:
        failures = list(map(_failure, error.failures))
        answer = {"ok": False, "path": path, "error": str(error), "failures": failures}
        write_json(answer, arguments.json)
        raise
    write_json({"ok": True, "path": path, "report": report.to_dict()}, arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        say(str(report))
    write_trace(report, arguments.trace)
    return 0


def _load(reader: Reader) -> ReadReport:
    """Like ``dcp.load``, but with the metadata of all ranks."""
    from paraload.adapters.dcp.reader_choice import metadata_of_all  # noqa: PLC0415
    from paraload.cli._planner import empty_state, planned  # noqa: PLC0415
    from paraload.runtime.gc_pause import collector_paused  # noqa: PLC0415 - these import torch

    found = metadata_of_all(reader)
    checkpoint.require_memory(found.index.tensor_bytes, "the checkpoint")
    reader._metadata_before = found.seen  # noqa: SLF001 - the reader does not read it itself
    with collector_paused():
        plan, planner = planned(reader, empty_state(found.index), found.metadata)
    reader.read_data(plan, planner)
    if reader.last_report is None:
        raise RuntimeError("the reader made no report")
    return reader.last_report


def _failure(failure: ItemReadError) -> dict[str, Any]:
    same = ("problem", "start", "end", "expected", "got")
    values = {name: getattr(failure, name) for name in same}
    return {"name": failure.fqn, "error": type(failure).__name__, "file": failure.path, **values}
