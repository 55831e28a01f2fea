"""What a folder without ``.metadata`` holds instead, and the next step for its user."""

import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from paraload._text import counted

_INCOMPLETE: Final = "an incomplete checkpoint? This file is written last"
#: A folder of runs may have thousands of subfolders; the last ones are the newest checkpoints.
_MOST_SUBFOLDERS: Final = 20
_CHECKPOINT_FILES: Final = ("/.metadata", ".safetensors")
#: By the endings of file names, in the order of preference.
_OTHER_FORMATS: Final = {
    (".safetensors",): "safetensors, which paraload.load and ParallelHuggingFaceReader read",
    (".gguf",): "GGUF, which paraload does not read",
    (".bin", ".pt", ".pth"): "torch.save, which paraload.read reads one by one",
}


def instead_of_metadata(names: Sequence[str]) -> str:
    """A clause about a folder with files of these relative ``names``.

    Of several checkpoints below it, the last one is called the newest.

    >>> instead_of_metadata(["step-9/.metadata", "step-10/model.safetensors"])
    "the newest of 2 checkpoints below this folder is 'step-10': load that folder"
    """
    if not names:
        return "there are no files here; an incomplete checkpoint?"
    if ".metadata.tmp" in names:
        return "'.metadata.tmp' shows that the save did not finish: save again, or load another one"
    below = [name for name in names if "/" in name and name.endswith(_CHECKPOINT_FILES)]
    if steps := list(dict.fromkeys(map(posixpath.dirname, below))):
        which = f"newest of {len(steps)} checkpoints" if len(steps) > 1 else "only checkpoint"
        return f"the {which} below this folder is {steps[-1]!r}: load that folder"
    for endings, what in _OTHER_FORMATS.items():
        if files := [name for name in names if name.endswith(endings)]:
            return f"this folder holds {counted(len(files), 'file')} of {what} ({files[0]!r})"
    return _INCOMPLETE


def in_natural_order(names: Sequence[str]) -> list[str]:
    """Sorted, with numbers by their value: ``step-9`` before ``step-10``."""

    def key(name: str) -> list[Any]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in _parts(name)]

    return sorted(names, key=key)


def names_in_folder(source: Any) -> list[str]:
    """The files of a folder; of a storage that cannot list them, none.

    Those of subfolders are among them only in storages that list nothing else.
    """
    if hasattr(source, "list_folder"):
        return [*source.list_folder("")]
    return [*source.list_files()] if hasattr(source, "list_files") else []


def names_of_parent(source: Any) -> list[str]:
    """The files of a folder, then those of its newest subfolders, the newest last."""
    names = names_in_folder(source)
    below = in_natural_order([name for name in names if name.endswith("/")])[-_MOST_SUBFOLDERS:]
    return in_natural_order(
        [name for name in names if not name.endswith("/")]
        + [folder + name for folder in below for name in source.list_folder(folder)]
    )


def names_in(folder: Path) -> list[str]:
    """Its files, then the checkpoints one level below it, the newest last."""
    names: list[str] = []
    steps: list[tuple[int, str]] = []
    with suppress(OSError):  # reading the metadata raises the error
        for path in folder.iterdir():
            names.append(path.name)
            for file in (path / ".metadata", *islice(path.glob("*.safetensors"), 1)):
                with suppress(OSError):
                    steps.append((file.stat().st_mtime_ns, f"{path.name}/{file.name}"))
    return sorted(names) + [name for _, name in sorted(steps)]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]
