"""The checkpoint that is measured, and how torch's reader and paraload's are made for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader, Metadata

from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader
from paraload.adapters.dcp.install import stock
from paraload.adapters.dcp.reader_choice import Reader
from paraload.adapters.dcp.urls import is_url, split_file
from paraload.core.compat import FsspecReader, HuggingFaceStorageReader
from paraload.metadata.index import CheckpointIndex
from paraload.options import ReadOptions
from paraload.sources.urls import without_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint and its readers.

    Attributes:
        name: of the checkpoint, as it was given, without credentials.
        folder: where its files are; ``None`` if a server has them.
        make: makes paraload's reader.
        reader: the class of that, for the recommendation.
        make_torch: makes torch's reader; ``None`` if ``not_torch`` says why there is none.
        torch_reader: the class of that.
        storage: the names of the options of the storage.
    """

    name: str
    folder: Path | None
    make: Callable[[ReadOptions], Reader]
    reader: str
    make_torch: Callable[[], Any] | None
    torch_reader: str = ""
    not_torch: str = ""
    storage: Sequence[str] = ()


def subject_of(
    reader: Reader, path: str | Path, storage: Mapping[str, str], index: CheckpointIndex
) -> Subject:
    """The subject at ``path``, for which ``reader`` was made with the options ``storage``."""
    kind: Any = type(reader)
    keywords = {"storage_options": dict(storage)} if storage else {}
    stock_kind, not_torch = _torch_reader(reader, path, storage, index)
    return Subject(
        name=without_credentials(str(path)),
        folder=None if is_url(path) else Path(reader.path),
        make=lambda options: kind(path, options=options, **keywords),
        reader=kind.__name__,
        make_torch=None if stock_kind is None else partial(_stock_reader, stock_kind, path),
        torch_reader="" if stock_kind is None else stock_kind.__name__,
        not_torch=not_torch,
        storage=tuple(storage),
    )


def _stock_reader(kind: Any, path: str | Path) -> Any:
    reader = stock(kind)(path)
    if kind is not HuggingFaceStorageReader:
        return reader
    set_up = reader.set_up_storage_reader

    def with_own_places(metadata: Metadata, *args: Any, **kwargs: Any) -> None:
        """Each version of torch has storage infos of its own, none like those of an index."""
        places = reader.read_metadata().storage_data
        set_up(replace(metadata, storage_data=places), *args, **kwargs)

    reader.set_up_storage_reader = with_own_places
    return reader


def _torch_reader(
    reader: Reader, path: str | Path, storage: Mapping[str, str], index: CheckpointIndex
) -> tuple[Any, str]:
    """The class of torch that reads this checkpoint, or ``None`` and why there is none."""
    if isinstance(reader, ParallelHuggingFaceReader):
        why = _no_safetensors_reader(path, index)
        return (None, why) if why else (HuggingFaceStorageReader, "")
    if not is_url(path):
        return FileSystemReader, ""
    if storage or without_credentials(str(path)) != str(path):
        return None, "its file systems have options and credentials of their own"
    try:
        FsspecReader(path)
    except Exception as error:  # noqa: BLE001 - file systems raise anything
        return None, f"{type(error).__name__}: {error}"
    return FsspecReader, ""


def _no_safetensors_reader(path: str | Path, index: CheckpointIndex) -> str:
    if HuggingFaceStorageReader is FileSystemReader:
        return "this version has no reader of safetensors"
    if find_spec("safetensors") is None:  # which torch imports only when it reads
        return "its reader of safetensors needs the package safetensors, which is not installed"
    if is_url(path) or split_file(path)[1] is not None:
        return "its reader of safetensors takes local folders only"
    if any(len(entry.chunks) > 1 for entry in index.entries):
        return "it cannot read a single chunk of a sharded tensor"
    return ""
