"""What commands print: tables for people, JSON for programs.

Tables are plain text in pipes and files, and wherever rich, of the ``cli`` extra, is missing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from paraload._text import printable, printable_lines
from paraload.cli._errors import UsageError
from paraload.progress import is_terminal
from paraload.report import ReadReport

STANDARD_OUTPUT: Final = "-"
_GAP: Final = "  "
#: Text that is folded into less is unreadable.
_FOLDED_WIDTH: Final = 8


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

    def __post_init__(self) -> None:
        """Escape control characters: the names in cells come from a file."""
        object.__setattr__(self, "title", printable(self.title))
        rows = [[printable(cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)

    @property
    def widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

    def show(self) -> None:
        show_tables([self])

    def plain(self) -> str:
        """Aligned text; columns are at least two blanks apart."""
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

        rich does not fold numbers: without enough room, it cuts their last digits.
        """
        widths = self.widths
        plain_width = sum(widths) + len(_GAP) * len(widths)
        drawn_width = plain_width + len(widths) + 1
        text = [width for number, width in enumerate(widths) if number not in self.numeric]
        narrowest = drawn_width - sum(max(0, width - _FOLDED_WIDTH) for width in text)
        return width >= drawn_width or narrowest <= width < plain_width


def show_tables(tables: Sequence[Table]) -> None:
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
            is_number = number in table.numeric
            justify: Literal["left", "right"] = "right" if is_number else "left"
            # Folded, because names that are cut cannot be copied.
            drawn.add_column(name, justify=justify, no_wrap=is_number, overflow="fold")
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
    """Discard what is left to write, or the interpreter tries again, and fails, when it ends."""
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


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that read a whole checkpoint."""
    parser.add_argument("path", metavar="PATH", help="folder of the checkpoint")
    parser.add_argument("--workers", type=int, metavar="N", help="readers at once")
    parser.add_argument(
        "--direct-io",
        action="store_true",
        default=None,
        help="bypass the page cache for uncached ranges (O_DIRECT)",
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``ReadOptions`` for these options, with a progress bar on a terminal."""
    given = {
        "progress": is_terminal(sys.stderr),  # elsewhere, tqdm need not even be imported
        "max_workers": arguments.workers,
        "direct_io": arguments.direct_io,
    }
    return {name: value for name, value in given.items() if value is not None}


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - writes only that, to the output"
    )


def add_trace_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help=f"write {what} as a trace that https://ui.perfetto.dev opens",
    )


def check_json_target(target: str | None) -> None:
    """As :func:`check_file_target`; standard output is fine too."""
    if target != STANDARD_OUTPUT:
        check_file_target("--json", target)


def check_file_target(option: str, target: str | None) -> None:
    """Refuse a file that cannot be written before the work, not after it.

    Raises:
        UsageError: its folder does not exist, or it is one itself.
    """
    if target is None:
        return
    if target == STANDARD_OUTPUT:
        raise UsageError(f"{option} {target}: name a file; only JSON goes to standard output")
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"{option} {target}: is a folder")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {target}: its folder does not exist")


def write_json(value: dict[str, Any], target: str | None) -> None:
    """Write ``value`` where ``--json`` says, if it was given."""
    if target is None:
        return
    text = json.dumps(value, indent=2)
    if target == STANDARD_OUTPUT:
        with printing():
            print(text, flush=True)
        return
    with _writing("--json", target):
        Path(target).write_text(f"{text}\n", encoding="utf-8")


def write_trace(report: ReadReport, target: str | None) -> None:
    """Write the time line where ``--trace`` says, if it was given."""
    if target is not None:
        with _writing("--trace", target):
            report.write_trace(target)


@contextmanager
def _writing(option: str, target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{option} {target}: {error.strerror}") from error
