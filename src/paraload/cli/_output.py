"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraload._text import printable, printable_lines
from paraload.cli._errors import UsageError
from paraload.progress import is_terminal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from rich.table import Table as RichTable

    from paraload.report import ReadReport

__all__ = [
    "STANDARD_OUTPUT",
    "Table",
    "add_json_option",
    "add_reading_options",
    "add_trace_option",
    "check_file_target",
    "check_json_target",
    "discard_output",
    "prepare_streams",
    "printing",
    "reading_options",
    "say",
    "show_tables",
    "write_json",
    "write_trace",
]

STANDARD_OUTPUT = "-"
_GAP = "  "
_VERY_WIDE = 10_000
#: Text that is folded into less cannot be read.
_FOLDED_WIDTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a title, safe to show on a terminal.

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

    def show(self) -> None:
        """Print it, with rich where rich is installed and somebody looks."""
        show_tables([self])

    def plain(self) -> str:
        """Aligned text; columns are at least two blanks apart."""
        return "\n".join([f"{self.title}:", *self._plain_lines()])

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

    def _plain_lines(self) -> list[str]:
        widths = self._widths()
        return [self._line(row, widths) for row in (self.head, *self.rows)]

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = (
            cell.rjust(width) if number in self.numeric else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return (_GAP + _GAP.join(cells)).rstrip()

    @property
    def plain_width(self) -> int:
        """Of the longest line below the title."""
        return max(map(len, self._plain_lines()))

    @property
    def foldable_width(self) -> int:
        """What folding the text columns can save."""
        text = (width for at, width in enumerate(self._widths()) if at not in self.numeric)
        return sum(max(0, width - _FOLDED_WIDTH) for width in text)


def prepare_streams() -> None:
    """Let no name of a file end a command: what the terminal cannot encode is printed escaped."""
    for stream in (sys.stdout, sys.stderr):  # either is None where the shell has closed it
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


def show_tables(tables: Sequence[Table]) -> None:
    """Print tables that belong together, all of them in one way."""
    if not (is_terminal(sys.stdout) and _draw(tables)):
        say("\n\n".join(table.plain() for table in tables))


def _draw(tables: Sequence[Table]) -> bool:
    """Draw with rich; ``False`` without rich, and where it would fold what fits when it is plain.

    Numbers are never folded: rich cuts their last digits instead, so it does not draw where even
    the narrowest text columns leave them too little room.
    """
    try:
        from rich import console  # noqa: PLC0415 - the cli extra
    except ImportError:
        return False
    # Names such as "a[b]" are no markup.
    printer = console.Console(markup=False, highlight=False, emoji=False)
    options = printer.options.update(max_width=_VERY_WIDE)
    drawn = [_drawn(table) for table in tables]
    widths = [printer.measure(one, options=options).maximum for one in drawn]
    least = max(width - table.foldable_width for width, table in zip(widths, tables, strict=True))
    plain_width = max(table.plain_width for table in tables)
    if plain_width <= printer.width < max(widths) or printer.width < least:
        return False
    with printing():
        printer.print(*drawn, sep="\n")
    return True


def _drawn(table: Table) -> RichTable:
    from rich import box  # noqa: PLC0415 - the cli extra
    from rich.table import Table as RichTable  # noqa: PLC0415 - likewise

    drawn = RichTable(
        title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for number, name in enumerate(table.head):
        is_number = number in table.numeric
        drawn.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",  # names are for copying: never cut them
        )
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """What commands that read a whole checkpoint are told: which, and with how many readers."""
    parser.add_argument("path", metavar="PATH", help="folder of the checkpoint")
    parser.add_argument("--workers", type=int, metavar="N", help="readers at once")
    parser.add_argument(
        "--direct-io",
        action="store_true",
        default=None,
        help="read past the page cache what is not in it",
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``ReadOptions`` that follow from these, and a bar where somebody looks."""
    # Where nobody looks, tqdm need not even be imported.
    given: dict[str, Any] = {"progress": is_terminal(sys.stderr)}
    if arguments.workers is not None:
        given["max_workers"] = arguments.workers
    if arguments.direct_io is not None:
        given["direct_io"] = arguments.direct_io
    return given


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``, as every command has it."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - writes only that, to the output"
    )


def add_trace_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--trace``, for commands that read."""
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
    """Write ``value`` where ``--json`` says, if it says so.

    Raises:
        UsageError: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, indent=2)
    if target == STANDARD_OUTPUT:
        with printing():
            print(text, flush=True)
        return
    try:
        Path(target).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {target}: {error.strerror}") from error


def write_trace(report: ReadReport, target: str | None) -> None:
    """Write the time line where ``--trace`` says, if it says so.

    Raises:
        UsageError: the file cannot be written.
    """
    if target is None:
        return
    try:
        report.write_trace(target)
    except OSError as error:
        raise UsageError(f"--trace {target}: {error.strerror}") from error
