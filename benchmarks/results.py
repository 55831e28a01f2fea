"""What a measurement hands back: tables for people, figures for programs, bars for both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.rounds import Timing

__all__ = ["Bar", "Section", "Table", "speed_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text below a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def speed_table(
    title: str,
    timings: Mapping[str, Timing],
    nbytes: int,
    relative_to: Mapping[str, str],
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    """A row for each arm that loads ``nbytes``.

    ``relative_to``: by its heading, the arm that a column compares with; ``more``: other columns,
    by heading and arm.
    """
    gib = nbytes / (1 << 30)
    more = more or {}
    return Table(
        title=title,
        columns=("arm", "median s", "GiB/s", *relative_to, *more, "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{gib / timing.median_s:.2f}",
                *(f"{timings[it].median_s / timing.median_s:.2f}" for it in relative_to.values()),
                *(column[name] for column in more.values()),
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure that must reach a limit, or stay below it."""

    name: str
    value: float
    limit: float
    unit: str
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure passes."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        sign = "<=" if self.at_most else ">="
        limit = f"{sign} {self.limit:g} {self.unit}"
        return {"name": self.name, "value": self.value, "limit": limit, "passed": self.passed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """All of one measurement."""

    tables: tuple[Table, ...]
    bars: tuple[Bar, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
