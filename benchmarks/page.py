"""The parts of ``benchmarks/README.md`` that are a run's own output, each between two comments."""

from __future__ import annotations

import argparse
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.table import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Table

__all__ = ["BENCH", "RIVALS", "RIVALS_S3", "Place", "rows_of", "seen_from"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command writes what it has printed.

    Attributes:
        name: of the part.
        command: that writes it.
    """

    name: str
    command: str

    @property
    def begin(self) -> str:
        """The line before it."""
        return f"<!-- {self.name}: begin. `{self.command}` writes what is between these lines. -->"

    @property
    def end(self) -> str:
        """The line behind it."""
        return f"<!-- {self.name}: end -->"

    def section(self, tables: Sequence[Table], notes: str, picture: str | None = None) -> str:
        """The tables as Markdown, below the picture and a line that says where they are from.

        Args:
            tables: as they were printed.
            notes: what they were measured on, and what was not.
            picture: where the chart lies, seen from the page; ``None`` without one.
        """
        parts = [f"Printed by `{self.command}`; {notes}."]
        if picture is not None:
            parts.append(f"![GiB/s of each reader]({picture})")
        for table in tables:
            parts += [f"### {table.title}", rows_of(table)]
        return "\n\n".join(parts)

    def require_in(self, page: Path) -> str:
        """The text of a page that has this place exactly once.

        Raises:
            OSError: the page cannot be read.
            ValueError: the place is missing, or occurs more than once.
        """
        text = page.read_text(encoding="utf-8")
        counts = text.count(self.begin), text.count(self.end)
        if counts != (1, 1) or text.index(self.begin) > text.index(self.end):
            raise ValueError(f"{page} has no place between {self.begin!r} and {self.end!r}")
        return text

    def page(self, text: str) -> Path:
        """The value of ``--readme``: looked at before minutes of measuring, not after them."""
        try:
            self.require_in(Path(text))
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return Path(text)

    def rewrite(self, page: Path, content: str) -> None:
        """Put ``content`` there; raises like :meth:`require_in`."""
        before, _, rest = self.require_in(page).partition(self.begin)
        _, _, after = rest.partition(self.end)
        page.write_text(f"{before}{self.begin}\n\n{content}\n\n{self.end}{after}", encoding="utf-8")


def rows_of(table: Table) -> str:
    """A table as Markdown, without its title."""
    printed = io.StringIO()
    print_table(table, printed)
    _, _, rows = printed.getvalue().partition("\n")
    return "\n".join(line.rstrip() for line in rows.strip().splitlines())


BENCH: Final = Place("bench", "make bench")
RIVALS: Final = Place("rivals", "make bench-rivals")
RIVALS_S3: Final = Place("rivals over S3", "make bench-rivals")


def seen_from(page: Path, picture: Path) -> str:
    """The picture's path as the page must write it."""
    return os.path.relpath(picture.resolve(), page.resolve().parent)
