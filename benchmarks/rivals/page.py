"""The section of ``benchmarks/README.md`` that is a run's own output, between two comments."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Final

from benchmarks.table import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.results import Table

__all__ = ["BEGIN", "END", "require_place", "rewrite", "section", "seen_from"]

BEGIN: Final = "<!-- rivals: begin. `make bench-rivals` writes what is between these lines. -->"
END: Final = "<!-- rivals: end -->"


def section(tables: Sequence[Table], notes: str, picture: str | None) -> str:
    """The tables as Markdown, below the picture and a line that says where they are from.

    Args:
        tables: as they were printed.
        notes: what they were measured on, and what was not.
        picture: where the chart lies, seen from the page; ``None`` without one.
    """
    parts = [f"Printed by `make bench-rivals`; {notes}."]
    if picture is not None:
        parts.append(f"![GiB/s of each reader]({picture})")
    for table in tables:
        printed = io.StringIO()
        print_table(table, printed)
        title, _, rows = printed.getvalue().partition("\n")
        parts.append(f"### {title.strip()}")
        parts.append("\n".join(line.rstrip() for line in rows.strip().splitlines()))
    return "\n\n".join(parts)


def require_place(page: Path) -> str:
    """The text of a page that has exactly one place for the section.

    Raises:
        OSError: the page cannot be read.
        ValueError: there is no such place, or there are several.
    """
    text = page.read_text(encoding="utf-8")
    if not text.count(BEGIN) == text.count(END) == 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} has no place between {BEGIN!r} and {END!r}")
    return text


def rewrite(page: Path, content: str) -> None:
    """Put ``content`` between the two comments of a page; raises like :func:`require_place`."""
    before, _, rest = require_place(page).partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{after}", encoding="utf-8")


def seen_from(page: Path, picture: Path) -> str:
    """The picture's path as the page must write it."""
    return os.path.relpath(picture.resolve(), page.resolve().parent)
