"""What commands know of a checkpoint before they read it: its metadata, as plain values."""

from __future__ import annotations

import dataclasses
import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraload.cli._errors import UsageError

if TYPE_CHECKING:
    from paraload._folder_metadata import FolderMetadata

__all__ = ["CheckpointFile", "Contents", "Entry", "contents", "existing_folder", "read_metadata"]

_METADATA = ".metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor or an object.

    Attributes:
        name: its fully qualified name.
        dtype: of the tensor; ``None`` for an object.
        shape: of the whole tensor; ``None`` for an object.
        bytes: that it takes in memory; for an object, in its file.
        chunks: pieces that were saved.
        files: files that hold them.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    bytes: int
    chunks: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """A file of the checkpoint.

    Attributes:
        path: relative to the checkpoint.
        bytes: that the metadata promises: where its last record ends.
        bytes_on_disk: that are there; ``None`` if the file is missing or cannot be looked at.
        records: pieces of tensors, and objects.
        refusal: why the system does not let it be looked at; "" if it does.
    """

    path: str
    bytes: int
    bytes_on_disk: int | None
    records: int
    refusal: str = ""

    @property
    def problem(self) -> str | None:
        """What is wrong, as far as the size tells."""
        if self.refusal:
            return f"{self.path}: the file cannot be looked at: {self.refusal}"
        if self.bytes_on_disk is None:
            return f"{self.path}: the file is missing"
        if self.bytes_on_disk < self.bytes:
            return (
                f"{self.path}: the file is too short; expected at least {self.bytes} bytes,"
                f" got {self.bytes_on_disk}"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All entries and files, by name; and the metadata files that are missing."""

    entries: list[Entry]
    files: list[CheckpointFile]
    missing: list[str] = dataclasses.field(default_factory=list)

    @property
    def tensors(self) -> list[Entry]:
        """The entries that are tensors."""
        return [entry for entry in self.entries if entry.shape is not None]

    @property
    def tensor_bytes(self) -> int:
        """What all tensors take in memory."""
        return sum(entry.bytes for entry in self.tensors)

    @property
    def file_bytes(self) -> int:
        """What all files hold."""
        return sum(file.bytes for file in self.files)

    @property
    def balance(self) -> float:
        """The largest file by the mean file: 1.0 when all are equal, and readers wait for none."""
        if not self.file_bytes:
            return 1.0
        return max(file.bytes for file in self.files) * len(self.files) / self.file_bytes

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files."""
        missing = [f"{name}: the metadata of this rank is missing" for name in self.missing]
        return missing + [file.problem for file in self.files if file.problem is not None]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain types for JSON."""
        return {
            "tensors": len(self.tensors),
            "objects": len(self.entries) - len(self.tensors),
            "tensor_bytes": self.tensor_bytes,
            "file_bytes": self.file_bytes,
            "balance": self.balance,
            "problems": self.problems,
            "files": [dataclasses.asdict(file) for file in self.files],
            "entries": [dataclasses.asdict(entry) for entry in self.entries],
        }


def existing_folder(text: str) -> Path:
    """The folder that a user named.

    Raises:
        UsageError: there is none.
    """
    if "://" in text:
        raise UsageError(f"{text}: a URL; this version reads folders of a mounted file system")
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UsageError(f"{text}: no such folder") from None
    except OSError as error:
        raise UsageError(f"{text}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{text}: not a folder; name the folder that holds {_METADATA}")
    return path


def read_metadata(path: Path) -> FolderMetadata:
    """The metadata of the checkpoint in this folder.

    Raises:
        MetadataError: there is none, or it cannot be read.
    """
    from paraload._folder_metadata import folder_metadata  # noqa: PLC0415 - imports torch
    from paraload.options import ReadOptions  # noqa: PLC0415 - likewise

    options = ReadOptions.resolve()
    return folder_metadata(path, allow_globals=options.allow_globals, retries=options.retries)


def contents(found: FolderMetadata, path: Path) -> Contents:
    """Entries and files of a checkpoint.

    Args:
        found: its metadata.
        path: its folder, where the sizes of the files are looked up.
    """
    records: dict[str, list[Any]] = {}
    by_file: dict[str, list[Any]] = {}
    for index, info in found.metadata.storage_data.items():
        records.setdefault(index.fqn, []).append(info)
        by_file.setdefault(info.relative_path, []).append(info)
    return Contents(
        entries=[
            _entry(name, item, records.get(name, []))
            for name, item in sorted(found.metadata.state_dict_metadata.items())
        ],
        files=[_file(path, name, infos) for name, infos in sorted(by_file.items())],
        missing=[f"__{rank}.metadata" for rank in found.missing],
    )


def _entry(name: str, item: Any, infos: list[Any]) -> Entry:
    size = getattr(item, "size", None)  # objects have none
    if size is None:
        dtype, shape, nbytes = None, None, sum(info.length for info in infos)
    else:
        dtype = str(item.properties.dtype).removeprefix("torch.")
        shape = tuple(size)
        nbytes = math.prod(shape) * item.properties.dtype.itemsize
    return Entry(
        name=name,
        dtype=dtype,
        shape=shape,
        bytes=nbytes,
        chunks=len(infos),
        files=len({info.relative_path for info in infos}),
    )


def _file(folder: Path, name: str, infos: list[Any]) -> CheckpointFile:
    path, size, refusal = folder / name, None, ""
    try:
        if path.is_file():
            size = path.stat().st_size
    except FileNotFoundError:
        pass  # gone since
    except OSError as error:
        refusal = str(error.strerror)
    return CheckpointFile(
        path=name,
        bytes=max(info.offset + info.length for info in infos),
        bytes_on_disk=size,
        records=len(infos),
        refusal=refusal,
    )
