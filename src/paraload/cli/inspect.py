"""``paraload inspect PATH``: what a checkpoint holds, without reading its tensors."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from paraload._text import counted, printable
from paraload.cli import _checkpoint as checkpoint
from paraload.cli._output import (
    STANDARD_OUTPUT,
    Table,
    add_json_option,
    check_json_target,
    say,
    warn,
    write_json,
)
from paraload.report import format_bytes

if TYPE_CHECKING:
    from paraload.cli._checkpoint import CheckpointFile, Contents, Entry

__all__ = ["add_parser", "run"]

_DEFAULT_LIMIT = 20


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = commands.add_parser(
        "inspect",
        help="list files and tensors",
        description="List the files and tensors of a checkpoint. Reads its metadata only.",
    )
    parser.add_argument("path", metavar="PATH", help="folder of the checkpoint")
    parser.add_argument(
        "--sort", choices=("size", "name"), default="size", help="order (default: size)"
    )
    parser.add_argument(
        "--limit",
        type=_count_or_zero,
        default=_DEFAULT_LIMIT,
        metavar="N",
        help=f"files and tensors to list, 0 for all (default: {_DEFAULT_LIMIT}); JSON has all",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print tables, or JSON; 1 if files are missing or cut."""
    check_json_target(arguments.json)
    path = checkpoint.existing_folder(arguments.path)
    metadata = checkpoint.read_metadata(path)
    found = checkpoint.contents(metadata, path)
    write_json({"path": str(path), **found.to_dict()}, arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        _show(found, sort=arguments.sort, limit=arguments.limit)
    if metadata.starts_late:
        warn(f"paraload: remark: {metadata.starts_late}")
    for problem in found.problems:
        warn(f"paraload: {printable(problem)}")
    return 1 if found.problems else 0


def _count_or_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def _show(found: Contents, *, sort: str, limit: int) -> None:
    objects = len(found.entries) - len(found.tensors)
    say(
        f"{counted(len(found.tensors), 'tensor')}, {format_bytes(found.tensor_bytes)};"
        f" {counted(objects, 'object')};"
        f" {counted(len(found.files), 'file')}, {format_bytes(found.file_bytes)}"
        f" (largest by mean: {found.balance:.2f})"
    )
    key = _by_size if sort == "size" else _by_name
    say()
    _files_table(sorted(found.files, key=key), limit, found).show()
    say()
    _entries_table(sorted(found.entries, key=key), limit).show()


def _by_size(what: Entry | CheckpointFile) -> tuple[int, str]:
    return -what.bytes, _by_name(what)


def _by_name(what: Entry | CheckpointFile) -> str:
    return what.path if isinstance(what, checkpoint.CheckpointFile) else what.name


def _files_table(files: list[CheckpointFile], limit: int, found: Contents) -> Table:
    shown = files[: limit or None]
    rows = [
        (
            file.path,
            format_bytes(file.bytes),
            f"{file.bytes / found.file_bytes:.1%}" if found.file_bytes else "",
            str(file.records),
        )
        for file in shown
    ]
    return Table(
        title=_title("files", len(shown), len(files)),
        head=("file", "bytes", "share", "records"),
        rows=rows,
        numeric=frozenset({1, 2, 3}),
    )


def _entries_table(entries: list[Entry], limit: int) -> Table:
    shown = entries[: limit or None]
    rows = [
        (
            entry.name,
            entry.dtype or "object",
            "" if entry.shape is None else " x ".join(map(str, entry.shape)) or "scalar",
            format_bytes(entry.bytes),
            str(entry.chunks),
            str(entry.files),
        )
        for entry in shown
    ]
    return Table(
        title=_title("tensors and objects", len(shown), len(entries)),
        head=("name", "dtype", "shape", "bytes", "chunks", "files"),
        rows=rows,
        numeric=frozenset({3, 4, 5}),
    )


def _title(what: str, shown: int, total: int) -> str:
    return what if shown == total else f"{what}, {shown} of {total} (--limit 0 lists all)"
