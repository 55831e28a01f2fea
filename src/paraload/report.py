"""ReadReport: what a load did, for people and programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FileTiming", "ReadReport", "format_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTiming:
    """When a file was first and last worked on, in seconds since the load began, and its bytes."""

    started_s: float
    ended_s: float
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """What was read, and how.

    Attributes:
        bytes_needed: bytes that the targets took.
        bytes_read: bytes that were read for them, headers and gaps included.
        bytes_verified: bytes of ``bytes_needed`` whose CRC-32 was checked and right.
        reads: read requests.
        items: tensors and objects.
        files: files.
        seconds: of the whole ``read_data``.
        workers: readers at once.
        executor: how they ran.
        retries: requests that were tried again.
        fallbacks: reason -> items that could not go the fast way.
        unverified: reason -> items whose bytes could not be checked.
        peak_in_flight_bytes: most staging memory that was reserved at once.
        file_timings: by path.
    """

    bytes_needed: int
    bytes_read: int
    bytes_verified: int
    reads: int
    items: int
    files: int
    seconds: float
    workers: int
    executor: str
    retries: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    unverified: Mapping[str, int] = field(default_factory=dict)
    peak_in_flight_bytes: int = 0
    file_timings: Mapping[str, FileTiming] = field(default_factory=dict)

    @property
    def bytes_per_second(self) -> float:
        """Needed bytes a second."""
        return self.bytes_needed / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain types for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A few lines for a person."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        lines = [
            (
                f"loaded {self.items} items, {format_bytes(self.bytes_needed)} from {self.files}"
                f" file{'s' * (self.files != 1)} in {self.seconds:.3f} s"
                f" ({format_bytes(self.bytes_per_second)}/s, {self.executor}, {workers})"
            ),
            (
                f"read {format_bytes(self.bytes_read)} in {self.reads} requests,"
                f" CRC-32 checked for {format_bytes(self.bytes_verified)}"
            ),
        ]
        if self.unverified:
            lines.append(f"not checked: {_counts(self.unverified)}")
        if self.fallbacks:
            lines.append(f"slow paths: {_counts(self.fallbacks)}")
        if self.retries:
            lines.append(f"retried requests: {self.retries}")
        return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(counts.items()))


def format_bytes(nbytes: float) -> str:
    """Bytes in the unit that suits them.

    >>> format_bytes(1536 << 20)
    '1.50 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:  # noqa: PLR2004 - the step between the units
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"
