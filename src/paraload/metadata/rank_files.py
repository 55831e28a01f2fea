"""The metadata files of a folder: one for all ranks, or one for each rank.

``dcp.save(..., use_collectives=False)`` writes ``__0.metadata``, ``__1.metadata`` and so on, but no
``.metadata``. Each rank then loads what it saved itself.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from paraload.metadata.folder_contents import instead_of_metadata, names_in

#: The file for all ranks.
GLOBAL_METADATA: Final = ".metadata"
#: The file of one rank. torch writes the number without leading zeros.
_RANK_METADATA: Final = re.compile(r"__(0|[1-9][0-9]*)\.metadata")
_SHOWN_RANKS: Final = 8


def rank_files(folder: str | os.PathLike[str]) -> dict[int, str]:
    """The metadata files of single ranks, by rank; empty if the folder cannot be listed."""
    try:
        return rank_files_among(path.name for path in Path(folder).iterdir())
    except OSError:
        return {}  # reading the metadata raises the error


def rank_files_among(names: Iterable[str]) -> dict[int, str]:
    """Those of ``names`` that are metadata files of single ranks, by rank."""
    found = map(_RANK_METADATA.fullmatch, names)
    return dict(sorted((int(match[1]), match[0]) for match in found if match))


def metadata_file(rank: int | None) -> str:
    """The name of the metadata file of ``rank``, or of the one for all ranks."""
    return GLOBAL_METADATA if rank is None else f"__{rank}{GLOBAL_METADATA}"


def may_appear(path: Any, fs: Any) -> bool:
    """Whether a file that was not found may be there in a moment, as on network file systems.

    It will not if its folder is missing, or if the writer wrote a file for each rank instead.
    """
    file = Path(path)
    if fs is None and not os.path.isdir(file.parent):  # noqa: PTH112 - is_dir() may raise
        return False
    if file.name != GLOBAL_METADATA or (fs is not None and not hasattr(fs, "exists")):
        return True
    if fs is None:
        return not rank_files(file.parent) or file in file.parent.iterdir()
    # Not every file system can list its files, so rank 0 stands for all ranks.
    of_rank_0 = type(path)(f"{str(path).removesuffix(GLOBAL_METADATA)}__0{GLOBAL_METADATA}")
    return bool(fs.exists(path)) or not fs.exists(of_rank_0)


def why_missing(name: str, fs: Any) -> str:
    """The problem with a metadata file that does not exist."""
    path = Path(name)
    has_folder = fs is not None or os.path.isdir(path.parent)  # noqa: PTH112 - as above
    if not has_folder:
        return "no such file; its folder does not exist either"
    return why_missing_among(names_in(path.parent), path.name)


def why_missing_among(names: Sequence[str], missing: str) -> str:
    """The same for a folder with files of these ``names``, in the order of their writing."""
    ranks = list(rank_files_among(names))
    if not ranks:
        return f"no such file; {instead_of_metadata(names)}"
    shown = ", ".join(map(str, ranks[:_SHOWN_RANKS]))
    if len(ranks) > _SHOWN_RANKS:
        shown += f" and {len(ranks) - _SHOWN_RANKS} more"
    has_global = GLOBAL_METADATA in (missing, *names)
    neither = "" if has_global else f", and no {GLOBAL_METADATA!r}"
    which = f"only rank {shown} has" if len(ranks) == 1 else f"ranks {shown} have"
    return (
        f"no such file{neither}; {which} separate metadata here, saved with"
        " use_collectives=False. A rank can only load what it saved itself"
    )
