"""The metadata of a checkpoint's folder, for tools: one ``Metadata`` and its index.

    .metadata                     one file for all ranks; it wins, as in torch
    __0.metadata, __1.metadata    one file for each rank: saved with use_collectives=False

Ranks that save separately may use one name for different tensors, so the entries of several ranks
are named "rank 1: w".
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from torch.distributed.checkpoint.metadata import Metadata

from paraload.errors import MetadataError
from paraload.metadata.dcp_index import index_of
from paraload.metadata.file_bytes import MetadataFile
from paraload.metadata.index import CheckpointIndex
from paraload.metadata.listing import Look, look_at
from paraload.metadata.rank_files import GLOBAL_METADATA, metadata_file, rank_files_among
from paraload.metadata.reading import read_metadata
from paraload.metadata.safetensors_records import holds_safetensors, locate_safetensors
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.runtime.gc_pause import collector_paused
from paraload.sources import ByteSource, FileStat
from paraload.sources.opening import open_source

#: A data file of a rank that saves alone.
_DATA_FILE: Final = re.compile(r"__(0|[1-9]\d*)_\d+\.distcp")

#: A stray file with a huge number in its name must not produce a list of billions.
_MOST_MISSING: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMetadata:
    """The metadata of a checkpoint.

    Attributes:
        metadata: all entries of all ranks.
        index: the same as plain values.
        seen: the stat of each metadata file before it was read, by path: absolute, or that of its
            source.
        ranks: ranks with separate metadata; empty if one file is for all.
        missing: ranks whose metadata should be here: a higher rank has metadata, or the rank has
            data files.
        is_dcp: whether DCP wrote it; otherwise it is safetensors.
    """

    metadata: Metadata
    index: CheckpointIndex
    seen: dict[str, FileStat]
    ranks: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    is_dcp: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the metadata files."""
        return tuple(f"__{rank}.metadata" for rank in self.ranks) or (GLOBAL_METADATA,)

    @property
    def starts_late(self) -> str:
        """A remark if the lowest rank is not 0: the lower ones may have another folder."""
        if not self.ranks or not (first := self.ranks[0]):
            return ""
        below = "rank 0 has" if first == 1 else f"ranks 0 to {first - 1} have"
        return f"{below} no metadata here; was it saved to another folder?"


def folder_metadata(
    folder: str | os.PathLike[str],
    *,
    source: ByteSource | None = None,
    look: Look | None = None,
    allow_globals: Iterable[Any] = (),
    retries: int | None = 0,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
) -> FolderMetadata:
    """Read the metadata of the checkpoint in ``folder``; see ``reading.read_metadata``.

    With a ``source``, which stays open, it has the files, and ``folder`` is their name in errors.
    ``look`` is what is known of the folder.
    """
    waiting: Any = {"retries": retries, "stall_timeout_s": stall_timeout_s}
    if look is None:
        look = look_at(source or open_source(folder), path=str(folder), **waiting)
    of_ranks = rank_files_among(look.names)
    seen: dict[str, FileStat] = {}
    found = []
    for rank in of_ranks or [None]:
        if source is None:
            file = MetadataFile.at(Path(folder, metadata_file(rank)), look=look)
        else:
            file = MetadataFile.of(source, rank, str(folder), look)
        metadata = read_metadata(
            file,
            allow_globals=tuple(allow_globals),
            seen=seen,
            **waiting,
        )
        if holds_safetensors(metadata):
            locate_safetensors(
                metadata,
                lambda: open_source(folder) if source is None else source,
                path=str(folder),
                **waiting,
            )
        _require_places(metadata, file.name)
        found.append(metadata)
    with collector_paused():
        metadata = found[0] if len(found) == 1 else _joined(dict(zip(of_ranks, found, strict=True)))
        index = index_of(metadata)
    return FolderMetadata(
        metadata=metadata,
        index=index,
        seen=seen,
        ranks=tuple(of_ranks),
        missing=_missing(look.names, of_ranks) if of_ranks else (),
    )


def _require_places(metadata: Metadata, path: str) -> None:
    storage = getattr(metadata, "storage_data", None)
    if not isinstance(storage, Mapping):
        raise MetadataError("does not say where anything is stored", path)
    infos = {type(info): info for info in storage.values()}
    for kind, info in infos.items():
        if not all(hasattr(info, name) for name in ("relative_path", "offset", "length")):
            raise MetadataError(
                f"describes the location of its tensors by {kind.__name__}, which has no byte"
                " ranges; only the reader that matches its writer can load it",
                path,
            )


def _joined(by_rank: dict[int, Metadata]) -> Metadata:
    entries: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    for rank, metadata in by_rank.items():
        for name, entry in metadata.state_dict_metadata.items():
            entries[f"rank {rank}: {name}"] = entry
        for index, info in (metadata.storage_data or {}).items():
            storage[replace(index, fqn=f"rank {rank}: {index.fqn}")] = info
    first = next(iter(by_rank.values()))
    return Metadata(entries, storage_data=storage, version=getattr(first, "version", None))


def _missing(names: Iterable[str], ranks: Collection[int]) -> tuple[int, ...]:
    gaps = (rank for rank in range(min(ranks), max(ranks)) if rank not in ranks)
    with_data = {int(found[1]) for name in names if (found := _DATA_FILE.fullmatch(name))}
    return tuple(sorted({*islice(gaps, _MOST_MISSING), *with_data.difference(ranks)}))
