"""What commands print: tables for people, JSON for programs.

Tables are plain text in pipes and files, and wherever rich, of the ``cli`` extra, is missing.
"""

import io
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paraload._text import printable, printable_lines
from paraload.cli._arguments import STANDARD_OUTPUT, UsageError
from paraload.progress import is_terminal
from paraload.report import ReadReport

_GAP: Final = "  "
#: Text that is folded into fewer columns is unreadable.
_FOLDED_WIDTH: Final = 8


@dataclass(slots=True, kw_only=True)
class Table:
    """Rows of text. The columns ``numeric`` are aligned to the right and never folded."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[int]

    def __post_init__(self) -> None:
        # Names in cells come from a file.
        self.title = printable(self.title)
        self.rows = [[printable(cell) for cell in row] for row in self.rows]

    @property
    def widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

    def plain(self) -> str:
        lines, widths = [f"{self.title}:"], self.widths
        for row in (self.head, *self.rows):
            cells = [
                cell.rjust(width) if number in self.numeric else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append((_GAP + _GAP.join(cells)).rstrip())
        return "\n".join(lines)

    def is_drawn_well(self, width: int) -> bool:
        """Whether rich folds nothing that fits as plain text, and has room for the numbers.

        Without enough room, rich cuts the last digits of numbers, since it may not fold them.
        """
        widths = self.widths
        plain_width = sum(widths) + len(_GAP) * len(widths)
        drawn_width = plain_width + len(widths) + 1
        text = [width for number, width in enumerate(widths) if number not in self.numeric]
        narrowest = drawn_width - sum(max(0, width - _FOLDED_WIDTH) for width in text)
        return width >= drawn_width or narrowest <= width < plain_width


def show_tables(*tables: Table) -> None:
    """Print tables that belong together: all drawn, or all plain."""
    if not (is_terminal(sys.stdout) and _draw(tables)):
        say("\n\n".join(table.plain() for table in tables))


def _draw(tables: Sequence[Table]) -> bool:
    """Draw with rich; ``False`` if plain text is better, or rich is missing."""
    try:
        from rich import box, console  # noqa: PLC0415 - the cli extra
        from rich.table import Table as RichTable  # noqa: PLC0415 - likewise
    except ImportError:
        return False
    # Without markup: names such as "a[b]" are shown as they are.
    printer = console.Console(markup=False, highlight=False, emoji=False)
    if not all(table.is_drawn_well(printer.width) for table in tables):
        return False
    for table in tables:
        drawn = RichTable(
            title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for number, name in enumerate(table.head):
            if number in table.numeric:
                drawn.add_column(name, justify="right", no_wrap=True)
            else:
                drawn.add_column(name, overflow="fold")  # names that are cut cannot be copied
        for row in table.rows:
            drawn.add_row(*row)
        with printing():
            printer.print(drawn)
    return True


def prepare_streams() -> None:
    """Print escapes for what the terminal cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):  # either is None if the shell has closed it
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def printing() -> Iterator[None]:
    """Around every write to standard output.

    Raises:
        UsageError: the write failed, for example on a full disk.
        BrokenPipeError: standard output is a pipe without a reader.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise UsageError(f"standard output: {error.strerror}") from error


def discard_output() -> None:
    """Discard buffered output; otherwise the interpreter writes it at exit, and fails again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str = "") -> None:
    """Print ``text`` at once, with escapes for control characters."""
    with printing():
        print(printable_lines(text), flush=True)


def warn(text: str) -> None:
    """Like :func:`say`, to standard error if there is one. A failure has no effect."""
    if sys.stderr is not None:  # print() would take standard output instead
        with suppress(OSError, ValueError, AttributeError):
            print(printable_lines(text), file=sys.stderr, flush=True)


def write_json(value: dict[str, Any], target: str | None) -> None:
    """Write ``value`` to where ``--json`` says, if it was given."""
    if target is None:
        return
    text = json.dumps(value, indent=2)
    if target == STANDARD_OUTPUT:
        with printing():
            print(text, flush=True)
        return
    with file_errors("--json", target):
        Path(target).write_text(f"{text}\n", encoding="utf-8")


def write_trace(report: ReadReport, target: str | None) -> None:
    """Write the time line to where ``--trace`` says, if it was given."""
    if target is not None:
        with file_errors("--trace", target):
            report.write_trace(target)


@contextmanager
def file_errors(option: str, name: str) -> Iterator[None]:
    """Turn system errors for the file of ``option`` into a ``UsageError``."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{option} {name}: {error.strerror or error}") from error
