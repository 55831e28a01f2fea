"""``paraload load PATH``: read a whole checkpoint into memory, check it, say how fast it was."""

from __future__ import annotations

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
    write_json,
    write_trace,
)
from paraload.errors import CheckpointReadError, InvalidOptionError
from paraload.options import EXECUTORS, ReadOptions, parse_bytes

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from torch.distributed.checkpoint import Metadata

    from paraload.errors import ItemReadError
    from paraload.report import ReadReport

__all__ = ["add_parser", "run"]


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
    except InvalidOptionError:
        raise
    except CheckpointReadError as error:
        failures = [_failure(failure) for failure in error.failures]
        answer = {"ok": False, "path": str(path), "error": str(error), "failures": failures}
        write_json(answer, arguments.json)
        raise
    write_json({"ok": True, "path": str(path), "report": report.to_dict()}, arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        print(report)
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


def _load(path: Path, metadata: Metadata, options: ReadOptions) -> ReadReport:
    import paraload  # noqa: PLC0415 - imports torch
    from paraload.cli._planner import BytesPlanner  # noqa: PLC0415 - likewise

    require_memory(checkpoint.contents(metadata, path).tensor_bytes, "the checkpoint")
    return paraload.load(
        _empty_state(metadata), path, planner=BytesPlanner(), no_dist=True, options=options
    )


def _empty_state(metadata: Metadata) -> dict[str, Any]:
    """A place for everything in the checkpoint."""
    import torch  # noqa: PLC0415 - takes seconds
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415

    return {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        if isinstance(item, TensorStorageMetadata)
        else None
        for name, item in metadata.state_dict_metadata.items()
    }


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
