"""Paths that come from a checkpoint must not lead out of its folder."""

import os
import posixpath
from typing import Final

_OUTSIDE: Final = (
    "The metadata is damaged, or crafted to read other files. If this layout is intended, pass"
    " allow_outside_paths=True"
)
_NO_NAME: Final = "The metadata is damaged, or was written on a system with other file names"


def unsafe_path(path: str) -> tuple[str, str] | None:
    """What is wrong with ``path`` by its text alone, and the next step."""
    if "\0" in path:
        return "has a NUL in it", _NO_NAME
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        return f"cannot be the name of a file here ({error.encoding}: {error.reason})", _NO_NAME
    if posixpath.isabs(path):
        return "is absolute", _OUTSIDE
    if posixpath.normpath(path).split("/", 1)[0] == "..":
        return "leaves the folder of the checkpoint", _OUTSIDE
    return None
