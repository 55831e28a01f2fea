"""DCP metadata of safetensors files, from their headers.

    model.safetensors               one file, given by its path
    *.safetensors.index.json        which file has which tensor; the one in the folder, or given
    *.safetensors                   all files of a folder without an index
    shard-*.safetensors             the same; DCP wrote the offsets of its chunks into each header

folder --list, index--> files --headers, in parallel--> tensors --> Metadata, with byte ranges

A load reads no header again: each storage info has the layout of its tensor. Without an index,
torch's reader takes every file too; with one, it does not look at it.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from torch.distributed.checkpoint.metadata import Metadata

from paraload._text import counted
from paraload.core.safe_paths import unsafe_path
from paraload.errors import (
    FormatError,
    ItemReadError,
    MetadataError,
    MissingFileError,
    MissingMetadataError,
    UnsafePathError,
)
from paraload.metadata.folder_contents import names_in_folder, names_of_parent
from paraload.metadata.safetensors_chunks import SafetensorsFile, metadata_of
from paraload.metadata.safetensors_headers import FileReader
from paraload.runtime.gc_pause import collector_paused
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import ByteSource, FileStat

SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = ".safetensors.index.json"
#: The usual names.
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
#: A missing file is sure to be missing only where all ranks wrote into one series of files.
_NUMBERED: Final = re.compile(r"(?!shard-)(.*)-([0-9]+)-of-([0-9]+)\.safetensors")
#: A stray file with a huge number in its name must not produce a list of billions.
_MOST_MISSING: Final = 1000
_SHOWN: Final = 5


@stopped_by_signals
def read_safetensors_metadata(
    source: ByteSource,
    file: str | None = None,
    *,
    path: str,
    retries: int | None,
    stall_timeout_s: float | None,
    seen: dict[str, FileStat] | None = None,
) -> Metadata:
    """The metadata of a safetensors checkpoint; its storage infos are :class:`SafetensorsInfo`.

    Args:
        source: of the checkpoint's folder.
        file: one ``.safetensors`` file or index in it; ``None`` looks at the whole folder.
        path: of the checkpoint, for errors.
        retries: how often to retry transient read errors; ``None`` as often as suits the storage.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.
        seen: receives the stat of each file before it is read, by its path in the source.

    Raises:
        MissingMetadataError: there are no safetensors files.
        CheckpointReadError: files are missing or damaged, or do not belong together. A single fault
            is a :class:`~paraload.errors.FormatError` or another
            :class:`~paraload.errors.ItemReadError`; several are its ``failures``.
        StalledReadError: the storage has not answered in time.
    """
    with (
        collector_paused(),
        FileReader(source, path=path, retries=retries, stall_timeout_s=stall_timeout_s) as reader,
    ):
        index, files = (None, [file]) if file is not None else _files(reader)
        if file is not None and file.endswith(INDEX_SUFFIX):
            index = file
        weight_map: dict[str, str] = {}
        if index is not None:
            weight_map = reader.weight_map(index)
            files = sorted(set(weight_map.values()))
            _require_inside(files, index)
        headers = reader.headers(files)
        found = [SafetensorsFile(*pair) for pair in zip(files, headers, strict=True)]
        if failures := _misplaced(found, weight_map, index):
            raise reader.error_of(failures)
        if seen is not None:
            seen |= reader.seen
        return metadata_of(found, weight_map)


def _files(reader: FileReader) -> tuple[str | None, list[str]]:
    """The index of the folder, or else its files."""
    if not hasattr(reader.source, "list_files"):
        return _unlisted(reader)
    names = reader.names(names_in_folder)
    top = {name for name in names if "/" not in name}
    indexes = sorted(name for name in top if name.endswith(INDEX_SUFFIX))
    if INDEX in indexes:
        return INDEX, []
    if len(indexes) > 1:
        problem = f"has several indexes, so give the path of one: {_few(indexes)}"
        raise MetadataError(problem, reader.path)
    if indexes:
        return indexes[0], []
    files = sorted(name for name in top if name.endswith(SUFFIX))
    if not files:
        raise MissingMetadataError(_why_none(reader.names(names_of_parent)), reader.path)
    if missing := _missing_numbers(files):
        raise MissingFileError(
            f"the checkpoint {reader.path!r} lacks {counted(len(missing), 'file')}",
            expected=_few(missing),
            got=f"only {_few(files)}",
            hint="Is the download complete? To load one file alone, give its path",
        )
    return None, files


def _unlisted(reader: FileReader) -> tuple[str | None, list[str]]:
    """The usual names, in a storage that cannot list its files."""
    [found] = reader.answers([INDEX], lambda source, name: source.stat(name))
    if isinstance(found, MissingFileError):
        return None, [SINGLE]
    if isinstance(found, ItemReadError):
        raise found
    return INDEX, []


def _why_none(names: set[str]) -> str:
    """Why a folder is not a safetensors checkpoint."""
    if not names:
        return f"no such folder, or it is empty; the name of a file ends with {SUFFIX}"
    what = f"no {SUFFIX} files here"
    if ".metadata" in names:
        return f"{what}, but a DCP checkpoint; ParallelFileSystemReader loads it"
    below = sorted({posixpath.dirname(name) for name in names if name.endswith(SUFFIX)})
    if below:
        return f"{what}, only in {_few(below)}; give the path of the folder that has them"
    return f"{what}, only {_few(sorted(names))}. Is this the right folder, and complete?"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _missing_numbers(files: Sequence[str]) -> list[str]:
    """Names like "model-00002-of-00003.safetensors" that others of their series promise."""
    there = set(files)
    series = {
        (found[1], len(found[2]), found[3])
        for found in map(_NUMBERED.fullmatch, files)
        if found is not None
    }
    missing = (
        name
        for stem, width, total in sorted(series)
        for number in range(1, int(total) + 1)
        if (name := f"{stem}-{number:0{width}}-of-{total}{SUFFIX}") not in there
    )
    return list(islice(missing, _MOST_MISSING))


def _require_inside(files: Iterable[str], index: str) -> None:
    for name in files:
        if (fault := unsafe_path(name)) is not None:
            what = f"the index names {name!r}, and that path {fault[0]}"
            raise UnsafePathError(what, path=index, hint="The index is damaged, or crafted")


def _misplaced(
    files: Sequence[SafetensorsFile], weight_map: Mapping[str, str], index: str | None
) -> list[ItemReadError]:
    """Tensors that are not in the file that the index names."""
    held = {(tensor.name, file.path) for file in files for tensor in file.header.tensors}
    homes = dict(held)
    return [
        FormatError(
            "the index names a file that does not hold this tensor",
            fqn=name,
            path=index,
            expected=f"it in {file!r}",
            got=f"it in {homes[name]!r}" if name in homes else "it in none of the files",
            hint="Index and files do not belong together; download or save them again",
        )
        for name, file in weight_map.items()
        if (name, file) not in held
    ]
