"""The checkpoint that a command is called with."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from paraload.cli._errors import UsageError

if TYPE_CHECKING:
    from paraload.metadata.folder import FolderMetadata


def existing_folder(text: str) -> Path:
    """The folder that the user named.

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
        raise UsageError(f"{text}: not a folder; name the folder that holds .metadata")
    return path


def read_metadata(path: Path) -> FolderMetadata:
    """The metadata and the index of the checkpoint in this folder.

    Raises:
        MetadataError: there is none, or it cannot be read.
    """
    from paraload.metadata.folder import folder_metadata  # noqa: PLC0415 - imports torch
    from paraload.options import ReadOptions  # noqa: PLC0415 - likewise

    options = ReadOptions.resolve()
    return folder_metadata(path, allow_globals=options.allow_globals, retries=options.retries)
