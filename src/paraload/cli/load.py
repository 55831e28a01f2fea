"""``paraload load PATH``: read a whole checkpoint into memory, check it, say how fast it was."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraload.cli import _checkpoint as checkpoint
from paraload.cli._memory import require_memory
from paraload.cli._output import (
    STANDARD_OUTPUT,
    add_json_option,
    add_reading_options,
    add_trace_option,
    check_file_target,
    check_json_target,
    reading_options,
    say,
    write_json,
    write_trace,
)
from paraload.errors import CheckpointReadError, ItemReadError
from paraload.options import EXECUTORS, ReadOptions, parse_bytes
from paraload.report import ReadReport

if TYPE_CHECKING:
    from paraload.metadata.folder import FolderMetadata


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = commands.add_parser(
        "load",
        help="read everything, and report how it went",
        description="Read every tensor and object of a checkpoint into memory, checking CRC-32s."
        " Objects are read, not unpickled.",
    )
    add_reading_options(parser)
    parser.add_argument("--executor", choices=EXECUTORS, help="how they run (default: auto)")
    parser.add_argument(
        "--memory-budget", metavar="SIZE", help="most staging memory in flight, such as 256MiB"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not check CRC-32s")
    add_json_option(parser)
    add_trace_option(parser, "what each worker read when")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load, print the report."""
    check_json_target(arguments.json)
    check_file_target("--trace", arguments.trace)
    options = _options(arguments)
    path = checkpoint.existing_folder(arguments.path)
    try:
        report = _load(path, checkpoint.read_metadata(path), options)
    except CheckpointReadError as error:
        failures = [_failure(failure) for failure in error.failures]
        answer = {"ok": False, "path": str(path), "error": str(error), "failures": failures}
        write_json(answer, arguments.json)
        raise
    write_json({"ok": True, "path": str(path), "report": report.to_dict()}, arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        say(str(report))
    write_trace(report, arguments.trace)
    return 0


def _options(arguments: argparse.Namespace) -> ReadOptions:
    given = reading_options(arguments)
    if arguments.executor is not None:
        given["executor"] = arguments.executor
    if arguments.memory_budget is not None:
        given["memory_budget_bytes"] = parse_bytes(arguments.memory_budget)
    if arguments.no_verify:
        given["verify"] = False
    return ReadOptions.resolve(overrides=given)


def _load(path: Path, found: FolderMetadata, options: ReadOptions) -> ReadReport:
    """What ``dcp.load`` does, but with the metadata of all ranks."""
    from paraload.adapters.dcp.readers import ParallelFileSystemReader  # noqa: PLC0415
    from paraload.cli._planner import BytesPlanner, empty_state  # noqa: PLC0415
    from paraload.runtime.gc_pause import collector_paused  # noqa: PLC0415 - these import torch

    require_memory(found.index.tensor_bytes, "the checkpoint")
    reader = ParallelFileSystemReader(path, options=options)
    reader._metadata_before = found.seen  # noqa: SLF001 - the reader does not read it itself
    planner = BytesPlanner()
    with collector_paused():
        planner.set_up_planner(empty_state(found.index), found.metadata, is_coordinator=True)
        reader.set_up_storage_reader(found.metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
        plan = planner.finish_plan(plan)
    reader.read_data(plan, planner)
    if (report := reader.last_report) is None:
        raise RuntimeError("the reader made no report")
    return report


def _failure(failure: ItemReadError) -> dict[str, Any]:
    return {
        "name": failure.fqn,
        "error": type(failure).__name__,
        "problem": failure.problem,
        "file": failure.path,
        "start": failure.start,
        "end": failure.end,
        "expected": failure.expected,
        "got": failure.got,
    }
