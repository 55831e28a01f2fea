"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraload.cli._errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["STANDARD_OUTPUT", "Table", "add_json_option", "check_json_target", "write_json"]

STANDARD_OUTPUT = "-"
_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a title.

    Attributes:
        title: above it.
        head: names of the columns.
        rows: cells, as many as names.
        numeric: columns that are aligned to the right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int]

    def show(self) -> None:
        """Print it, with rich where rich is installed and somebody looks."""
        if not (sys.stdout.isatty() and self._show_rich()):
            print(self.plain())

    def plain(self) -> str:
        """Aligned text; columns are at least two blanks apart."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [self._line(row, widths) for row in (self.head, *self.rows)]
        return "\n".join([f"{self.title}:", *lines])

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = (
            cell.rjust(width) if number in self.numeric else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return (_GAP + _GAP.join(cells)).rstrip()

    def _show_rich(self) -> bool:
        try:
            from rich import box, console, table  # noqa: PLC0415 - the cli extra
        except ImportError:
            return False
        drawn = table.Table(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for number, name in enumerate(self.head):
            is_number = number in self.numeric
            drawn.add_column(
                name,
                justify="right" if is_number else "left",
                no_wrap=is_number,
                overflow="fold",  # names are for copying: never cut them
            )
        for row in self.rows:
            drawn.add_row(*row)
        # Names such as "a[b]" are no markup.
        console.Console(markup=False, highlight=False, emoji=False).print(drawn)
        return True


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``, as every command has it."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - writes only that, to the output"
    )


def check_json_target(target: str | None) -> None:
    """Refuse a file that cannot be written before the work, not after it.

    Raises:
        UsageError: its folder does not exist, or it is one itself.
    """
    if target is None or target == STANDARD_OUTPUT:
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"--json {target}: is a folder")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--json {target}: its folder does not exist")


def write_json(value: dict[str, Any], target: str | None) -> None:
    """Write ``value`` where ``--json`` says, if it says so.

    Raises:
        UsageError: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, indent=2)
    if target == STANDARD_OUTPUT:
        print(text)
        return
    try:
        Path(target).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {target}: {error.strerror}") from error
