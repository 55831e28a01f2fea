"""The metadata of a checkpoint, and the memory to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paraload.cli._arguments import UsageError
from paraload.options import ReadOptions
from paraload.report import format_bytes
from paraload.runtime.resources import available_memory_bytes

if TYPE_CHECKING:
    from paraload.metadata.folder import FolderMetadata


def read_metadata(path: Path) -> FolderMetadata:
    from paraload.metadata.folder import folder_metadata  # noqa: PLC0415 - imports torch

    options = ReadOptions.resolve()
    return folder_metadata(path, allow_globals=options.allow_globals, retries=options.retries)


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse a load that the system would kill halfway.

    Raises:
        UsageError: there is not enough free memory.
    """
    if needed_bytes > (free_bytes := available_memory_bytes()):
        needed, free = format_bytes(needed_bytes), format_bytes(free_bytes)
        raise UsageError(f"{what} takes {needed} of memory, and {free} are free here")
