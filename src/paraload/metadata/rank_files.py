"""The metadata files of a folder: one for all ranks, or one for each rank.

``dcp.save(..., use_collectives=False)`` writes ``__0.metadata``, ``__1.metadata`` and so on, but no
``.metadata``. Each rank then loads what it saved itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

#: The file for all ranks.
GLOBAL_METADATA: Final = ".metadata"
#: The file of one rank. torch writes the number without leading zeros.
_RANK_METADATA: Final = re.compile(r"__(0|[1-9][0-9]*)\.metadata")
_SHOWN_RANKS: Final = 8


def rank_files(folder: str | os.PathLike[str]) -> dict[int, str]:
    """The metadata files of single ranks, by rank; empty if the folder cannot be listed."""
    found = map(_RANK_METADATA.fullmatch, _names_in(Path(folder)))
    return dict(sorted((int(match[1]), match[0]) for match in found if match))


def is_left_out(path: Path) -> bool:
    """Whether this is the file for all ranks, and the writer wrote one for each rank instead.

    On a network file system, a file that is listed may be missing only for a moment.
    """
    if path.name != GLOBAL_METADATA:
        return False
    names = _names_in(path.parent)
    return path.name not in names and any(map(_RANK_METADATA.fullmatch, names))


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []  # reading the metadata raises the error


def only_ranks(path: Path) -> str:
    """The text for a missing metadata file if the folder has files of single ranks, else ""."""
    ranks = list(rank_files(path.parent))
    if not ranks:
        return ""
    shown = ", ".join(map(str, ranks[:_SHOWN_RANKS]))
    if len(ranks) > _SHOWN_RANKS:
        shown += f" and {len(ranks) - _SHOWN_RANKS} more"
    has_global = (path.parent / GLOBAL_METADATA).exists()
    neither = "" if has_global or path.name == GLOBAL_METADATA else f", and no {GLOBAL_METADATA!r}"
    which = f"only rank {shown} has" if len(ranks) == 1 else f"ranks {shown} have"
    return (
        f"no such file{neither}; {which} separate metadata here, saved with"
        " use_collectives=False. A rank can only load what it saved itself"
    )
