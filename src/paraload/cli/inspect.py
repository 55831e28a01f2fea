"""``paraload inspect PATH``: what a checkpoint holds, without reading its tensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from paraload._text import counted, printable
from paraload.cli import _checkpoint as checkpoint
from paraload.cli._arguments import STANDARD_OUTPUT, add_json_option, add_path
from paraload.cli._output import Table, say, show_tables, warn, write_json
from paraload.errors import FormatError
from paraload.metadata.index import Entry, Place
from paraload.report import format_bytes

if TYPE_CHECKING:
    from paraload.metadata.folder import FolderMetadata
    from paraload.sources import ByteSource


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="list files and tensors",
        description="List the files and tensors of a checkpoint. Reads only its metadata.",
    )
    add_path(parser)
    add = parser.add_argument
    about = "files and tensors to list, 0 for all (default: 20); JSON has all"
    add("--sort", choices=("size", "name"), default="size", help="order (default: size)")
    add("--limit", type=_count_or_zero, default="20", metavar="N", help=about)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from paraload.adapters.dcp.reader_choice import (  # noqa: PLC0415 - imports torch
        metadata_of_all,
        source_of,
    )

    reader = checkpoint.open_reader(arguments)
    found = metadata_of_all(reader)
    with closing(source_of(reader)) as source:
        facts = _facts(found, source, str(reader.path))
    write_json(facts, arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        _show(facts, sort=arguments.sort, limit=arguments.limit or None)
    if found.starts_late:
        warn(f"paraload: remark: {found.starts_late}")
    for problem in facts["problems"]:
        warn(f"paraload: {printable(problem)}")
    return int(bool(facts["problems"]))


def _count_or_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


# ------------------------------------------------------------------------------------------- JSON


def _facts(found: FolderMetadata, source: ByteSource, path: str) -> dict[str, Any]:
    index = found.index
    files = [_file_facts(source, *item) for item in index.places_by_file().items()]
    sizes = [file["bytes"] for file in files]
    problems = [
        f"__{rank}.metadata: the metadata of this rank is missing" for rank in found.missing
    ]
    tensors = sum(entry.shape is not None for entry in index.entries)
    return {
        "path": path,
        "tensors": tensors,
        "objects": len(index.entries) - tensors,
        "tensor_bytes": index.tensor_bytes,
        "file_bytes": sum(sizes),
        # Largest file / mean file. At 1.0 all are equal, and no reader waits for another.
        "balance": max(sizes) * len(sizes) / sum(sizes) if any(sizes) else 1.0,
        "problems": problems + [problem for file in files if (problem := _problem(file))],
        "files": files,
        "entries": sorted(map(_entry_facts, index.entries), key=itemgetter("name")),
    }


def _entry_facts(entry: Entry) -> dict[str, Any]:
    places = entry.places
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": entry.shape,
        "bytes": entry.nbytes,
        "chunks": len(places),
        "files": len({place.path for place in places}),
    }


def _file_facts(source: ByteSource, name: str, places: Sequence[Place]) -> dict[str, Any]:
    """``bytes`` extends to the end of the last record; ``bytes_on_disk`` is the file's size."""
    size, refusal = None, ""
    try:
        size = source.stat(name).size
    except (FileNotFoundError, FormatError):
        pass  # missing, or not a file
    except OSError as error:
        refusal = str(error.strerror)
    except Exception as error:  # noqa: BLE001 - clients of storages raise errors of their own
        refusal = str(error)
    return {
        "path": name,
        "bytes": max(place.end for place in places),
        "bytes_on_disk": size,
        "records": len(places),
        "refusal": refusal,
    }


def _problem(file: dict[str, Any]) -> str | None:
    name, promised, size = file["path"], file["bytes"], file["bytes_on_disk"]
    if file["refusal"]:
        return f"{name}: the file cannot be looked at: {file['refusal']}"
    if size is None:
        return f"{name}: the file is missing"
    if size < promised:
        return f"{name}: the file is too short; expected at least {promised} bytes, got {size}"
    return None


# ------------------------------------------------------------------------------------------- text


def _show(facts: dict[str, Any], *, sort: str, limit: int | None) -> None:
    # Both lists are sorted by name, and sorting is stable.
    files, entries, total = facts["files"], facts["entries"], facts["file_bytes"]
    if sort == "size":
        files, entries = (
            sorted(items, key=itemgetter("bytes"), reverse=True) for items in (files, entries)
        )
    file_rows = [
        (
            file["path"],
            format_bytes(file["bytes"]),
            f"{file['bytes'] / total:.1%}" if total else "",
            str(file["records"]),
        )
        for file in files[:limit]
    ]
    entry_rows = [
        (
            entry["name"],
            entry["dtype"] or "object",
            "" if entry["shape"] is None else " x ".join(map(str, entry["shape"])) or "scalar",
            format_bytes(entry["bytes"]),
            str(entry["chunks"]),
            str(entry["files"]),
        )
        for entry in entries[:limit]
    ]
    say(
        f"{counted(facts['tensors'], 'tensor')}, {format_bytes(facts['tensor_bytes'])};"
        f" {counted(facts['objects'], 'object')};"
        f" {counted(len(files), 'file')}, {format_bytes(total)}"
        f" (largest / mean: {facts['balance']:.2f})\n"
    )
    entry_head = ("name", "dtype", "shape", "bytes", "chunks", "files")
    show_tables(
        _table("files", ("file", "bytes", "share", "records"), file_rows, len(files), texts=1),
        _table("tensors and objects", entry_head, entry_rows, len(entries), texts=3),
    )


def _table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], total: int, *, texts: int
) -> Table:
    more = "" if len(rows) == total else f", {len(rows)} of {total} (--limit 0 lists all)"
    return Table(title=title + more, head=head, rows=rows, numeric=range(texts, len(head)))
