"""The table of the demo: times, rates and memory of either reader. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["Case", "print_table"]

_GIB, _MIB = 1 << 30, 1 << 20
_HEAD = ("case", "reader", "seconds", "speed-up", "seconds", "GiB/s", "speed-up", "extra memory")
#: What stands over some columns: text, first column, one past the last.
_GROUPS = (("dcp.load", 2, 4), ("in it, read_data", 4, 7))
_TEXT_COLUMNS = 2
_GAP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One reader, and how it loaded the checkpoint."""

    name: str
    result: dict[str, Any]

    def middle(self, reader: str, field: str) -> float:
        """The median over the rounds."""
        return float(median(measure[field] for measure in self.result["measures"][reader]))

    def row(self, reader: str) -> tuple[str, ...]:
        """The line of this reader."""
        load_s, read_s = self.middle(reader, "load_s"), self.middle(reader, "read_s")
        peak_bytes = max(measure["extra_bytes"] for measure in self.result["measures"][reader])
        is_base = reader == "torch"
        return (
            self.name if is_base else "",
            reader,
            f"{load_s:.3f}",
            "" if is_base else f"{self.middle('torch', 'load_s') / load_s:.1f}x",
            f"{read_s:.3f}",
            f"{self.result['bytes'] / read_s / _GIB:.2f}",
            "" if is_base else f"{self.middle('torch', 'read_s') / read_s:.1f}x",
            f"{peak_bytes / _MIB:.0f} MiB",
        )


def print_table(cases: list[Case], *, rounds: int) -> None:
    """Two lines for a case, and what the numbers are."""
    rows = [case.row(reader) for case in cases for reader in ("torch", "paraload")]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    print(_group_line(widths))
    print(_line(_HEAD, widths))
    print("-" * (sum(widths) + _GAP * (len(widths) - 1)))
    for row in rows:
        print(_line(row, widths))
    what = f"medians of {rounds} rounds" if rounds > 1 else "one round"
    print(f"\nTimes: {what}, page cache warm, on the slowest rank. The rest of dcp.load, metadata")
    print(
        "and planning, is torch's own code with either reader. Extra memory: the most that a rank"
    )
    print("took above the tensors that it filled.")


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    texts = [
        cell.ljust(width) if number < _TEXT_COLUMNS else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return (" " * _GAP).join(texts).rstrip()


def _group_line(widths: list[int]) -> str:
    line = ""
    for text, first, end in _GROUPS:
        start = sum(widths[:first]) + _GAP * first
        width = sum(widths[first:end]) + _GAP * (end - first - 1)
        line = line.ljust(start) + f" {text} ".center(width, "-")
    return line
