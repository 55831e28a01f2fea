"""Prints results as tables that can be pasted into a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.results import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from benchmarks.results import Bar

__all__ = ["bars_table", "print_table"]


def print_table(table: Table, file: TextIO) -> None:
    """Print one table, as Markdown: words to the left, figures to the right."""
    drawn = RichTable(box=box.MARKDOWN, header_style="")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    # A pipe would have 80 columns and cut long rows, such as those with an error.
    console = Console(file=file, width=400, highlight=False)
    console.print(table.title, style="bold", markup=False)
    console.print(drawn)


def bars_table(bars: Sequence[Bar]) -> Table:
    """The bars, and whether they are reached."""
    return Table(
        title="Bars",
        columns=("bar", "limit", "measured", ""),
        rows=tuple(
            (
                bar.name,
                bar.to_dict()["limit"],
                f"{bar.value:.2f}",
                "PASS" if bar.passed else "short",
            )
            for bar in bars
        ),
    )
