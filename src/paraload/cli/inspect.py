"""``paraload inspect PATH``: what a checkpoint holds, without reading its tensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
from paraload.metadata.index import Entry, Place
from paraload.report import format_bytes

if TYPE_CHECKING:
    from paraload.metadata.folder import FolderMetadata

    #: What JSON has of a file, or of an entry.
    Facts = dict[str, Any]

_DEFAULT_LIMIT: Final = 20


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
    found = checkpoint.read_metadata(path)
    facts = _facts(found, path)
    write_json(facts, arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        _show(facts, sort=arguments.sort, limit=arguments.limit)
    if found.starts_late:
        warn(f"paraload: remark: {found.starts_late}")
    for problem in facts["problems"]:
        warn(f"paraload: {printable(problem)}")
    return 1 if facts["problems"] else 0


def _count_or_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


# ------------------------------------------------------------------------------- what JSON has


def _facts(found: FolderMetadata, path: Path) -> Facts:
    index = found.index
    files = [_file_facts(path, *item) for item in index.places_by_file().items()]
    sizes = [file["bytes"] for file in files]
    problems = [
        f"__{rank}.metadata: the metadata of this rank is missing" for rank in found.missing
    ]
    tensors = sum(entry.shape is not None for entry in index.entries)
    return {
        "path": str(path),
        "tensors": tensors,
        "objects": len(index.entries) - tensors,
        "tensor_bytes": index.tensor_bytes,
        "file_bytes": sum(sizes),
        # The largest file by the mean file: with 1.0, all are equal, and no reader waits.
        "balance": max(sizes) * len(sizes) / sum(sizes) if any(sizes) else 1.0,
        "problems": problems + [problem for file in files if (problem := _problem(file))],
        "files": files,
        "entries": sorted(map(_entry_facts, index.entries), key=itemgetter("name")),
    }


def _entry_facts(entry: Entry) -> Facts:
    places = entry.places
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": entry.shape,
        "bytes": entry.nbytes,
        "chunks": len(places),
        "files": len({place.path for place in places}),
    }


def _file_facts(folder: Path, name: str, places: Sequence[Place]) -> Facts:
    """``bytes`` are up to the end of the last record, ``bytes_on_disk`` those that are there."""
    path, size, refusal = folder / name, None, ""
    try:
        if path.is_file():
            size = path.stat().st_size
    except FileNotFoundError:
        pass  # gone since
    except OSError as error:
        refusal = str(error.strerror)
    return {
        "path": name,
        "bytes": max(place.end for place in places),
        "bytes_on_disk": size,
        "records": len(places),
        "refusal": refusal,
    }


def _problem(file: Facts) -> str | None:
    promised, size = file["bytes"], file["bytes_on_disk"]
    if file["refusal"]:
        return f"{file['path']}: the file cannot be looked at: {file['refusal']}"
    if size is None:
        return f"{file['path']}: the file is missing"
    if size < promised:
        least = f"expected at least {promised} bytes, got {size}"
        return f"{file['path']}: the file is too short; {least}"
    return None


# --------------------------------------------------------------------------- what people see


def _show(facts: Facts, *, sort: str, limit: int) -> None:
    say(
        f"{counted(facts['tensors'], 'tensor')}, {format_bytes(facts['tensor_bytes'])};"
        f" {counted(facts['objects'], 'object')};"
        f" {counted(len(facts['files']), 'file')}, {format_bytes(facts['file_bytes'])}"
        f" (largest by mean: {facts['balance']:.2f})"
    )
    # Both lists are sorted by name, and sorting is stable.
    files, entries = (
        sorted(facts[what], key=itemgetter("bytes"), reverse=True)
        if sort == "size"
        else facts[what]
        for what in ("files", "entries")
    )
    rows = [
        (
            file["path"],
            format_bytes(file["bytes"]),
            f"{file['bytes'] / facts['file_bytes']:.1%}" if facts["file_bytes"] else "",
            str(file["records"]),
        )
        for file in files[: limit or None]
    ]
    _show_table("files", ("file", "bytes", "share", "records"), rows, len(files), texts=1)
    lines = [
        (
            entry["name"],
            entry["dtype"] or "object",
            "" if entry["shape"] is None else " x ".join(map(str, entry["shape"])) or "scalar",
            format_bytes(entry["bytes"]),
            str(entry["chunks"]),
            str(entry["files"]),
        )
        for entry in entries[: limit or None]
    ]
    head = ("name", "dtype", "shape", "bytes", "chunks", "files")
    _show_table("tensors and objects", head, lines, len(entries), texts=3)


def _show_table(
    what: str, head: Sequence[str], rows: Sequence[Sequence[str]], total: int, *, texts: int
) -> None:
    more = "" if len(rows) == total else f", {len(rows)} of {total} (--limit 0 lists all)"
    numeric = frozenset(range(texts, len(head)))
    say()
    Table(title=what + more, head=head, rows=rows, numeric=numeric).show()
