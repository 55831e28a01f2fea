"""What a folder without ``.metadata`` holds instead, and the next step for its user."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from paraload._text import counted

_INCOMPLETE: Final = "an incomplete checkpoint? This file is written last"
#: By the ending of file names, in the order of preference.
_OTHER_FORMATS: Final = {
    ".gguf": "GGUF, which paraload does not read",
    ".bin": "torch.save, which torch.load reads",
    ".pt": "torch.save, which torch.load reads",
    ".pth": "torch.save, which torch.load reads",
}


def instead_of_metadata(names: Sequence[str]) -> str:
    """A clause about a folder with files of these relative ``names``.

    Of several checkpoints below it, the last one is called the newest.

    >>> instead_of_metadata(["step-9/.metadata", "step-10/.metadata"])
    "its newest checkpoint, of 2, is 'step-10': load that folder"
    """
    if ".metadata.tmp" in names:
        return "'.metadata.tmp' shows that the save did not finish: save again, or load another one"
    steps = [name.removesuffix("/.metadata") for name in names if name.endswith("/.metadata")]
    if steps:
        return f"its newest checkpoint, of {len(steps)}, is {steps[-1]!r}: load that folder"
    for ending, what in _OTHER_FORMATS.items():
        if files := [name for name in names if name.endswith(ending)]:
            return f"it holds {counted(len(files), 'file')} of {what} ({files[0]!r})"
    return _INCOMPLETE


def in_natural_order(names: Sequence[str]) -> list[str]:
    """Sorted, with numbers by their value: ``step-9`` before ``step-10``."""

    def key(name: str) -> list[Any]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in _parts(name)]

    return sorted(names, key=key)


def names_in(folder: Path) -> list[str]:
    """Its files, then the checkpoints one level below it, the newest last."""
    names: list[str] = []
    steps: list[tuple[int, str]] = []
    with suppress(OSError):  # reading the metadata raises the error
        for path in folder.iterdir():
            names.append(path.name)
            with suppress(OSError):
                written = (path / ".metadata").stat().st_mtime_ns
                steps.append((written, f"{path.name}/.metadata"))
    return sorted(names) + [name for _, name in sorted(steps)]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]
