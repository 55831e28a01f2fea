"""ReadReport: what a load read, and how."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paraload._text import counted, printable
from paraload.report.trace import TaskTiming, trace_of

__all__ = ["FileTiming", "ReadReport", "TaskTiming", "format_bytes", "pairs_text"]

_SHOWN_PAIRS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTiming:
    """When a file was read, in seconds since the load began, and how many bytes of it."""

    started_s: float
    ended_s: float
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """What a load read, and how. ``print(report)`` gives a summary.

    Attributes:
        bytes_needed: bytes that the targets needed.
        bytes_read: bytes that were read, including headers and gaps.
        bytes_verified: bytes of ``bytes_needed`` whose CRC-32 was checked and correct.
        reads: read requests.
        items: tensors and objects that were loaded.
        files: files that were read.
        seconds: duration of ``read_data``.
        workers: number of concurrent readers.
        executor: the executor that ran them, such as ``"threads"``.
        retries: read requests that were repeated.
        bytes_direct: bytes of ``bytes_read`` that bypassed the page cache.
        fallbacks: items that took a slow path, counted by reason.
        unverified: items whose bytes could not be checked, counted by reason.
        conversions: items whose dtype was converted, counted by conversion.
        overwritten: targets that lost their values, each with the target that overwrote it: the two
            share memory and were saved with different values.
        peak_in_flight_bytes: peak of reserved staging memory.
        file_timings: a :class:`FileTiming` for each file, by path relative to the checkpoint.
        tasks: tasks of all readers.
        timeline: a :class:`TaskTiming` for each task, in the order of their starts. It has at most
            10,000 entries; a longer load joins consecutive tasks.
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
    bytes_direct: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    unverified: Mapping[str, int] = field(default_factory=dict)
    conversions: Mapping[str, int] = field(default_factory=dict)
    overwritten: Mapping[str, str] = field(default_factory=dict)
    peak_in_flight_bytes: int = 0
    file_timings: Mapping[str, FileTiming] = field(default_factory=dict)
    tasks: int = 0
    timeline: tuple[TaskTiming, ...] = field(default=(), repr=False)

    @property
    def bytes_per_second(self) -> float:
        """Needed bytes per second of the whole load; 0.0 if it took no time."""
        return self.bytes_needed / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields except ``timeline``, as plain types for JSON."""
        values = dataclasses.asdict(dataclasses.replace(self, timeline=()))
        del values["timeline"]
        return values

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the time line to a JSON file for https://ui.perfetto.dev or chrome://tracing.

        The trace has a track for each worker, a slice for each task, and the total throughput.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(json.dumps(trace_of(self)), encoding="utf-8")

    def __str__(self) -> str:
        direct = f" ({format_bytes(self.bytes_direct)} of it past the page cache)"
        loaded = (
            f"loaded {counted(self.items, 'item')}, {format_bytes(self.bytes_needed)} from"
            f" {counted(self.files, 'file')} in {self.seconds:.3f} s"
            f" ({format_bytes(self.bytes_per_second)}/s, {self.executor},"
            f" {counted(self.workers, 'worker')})"
        )
        read = f"read {format_bytes(self.bytes_read)} in {counted(self.reads, 'request')}"
        read += direct if self.bytes_direct else ""
        read += f", CRC-32 checked for {format_bytes(self.bytes_verified)}"
        details = {
            "not checked": _counts(self.unverified),
            "converted": _counts(self.conversions),
            "overwritten": pairs_text(self.overwritten),
            "slow paths": _counts(self.fallbacks),
            "retried requests": self.retries,
        }
        more = [f"{label}: {detail}" for label, detail in details.items() if detail]
        return "\n".join(map(printable, [loaded, read, *more]))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(counts.items()))


def pairs_text(overwritten: Mapping[str, str]) -> str:
    """The first few pairs and the number of the others."""
    pairs = [f"{target!r} by {by!r}" for target, by in overwritten.items()]
    hidden = len(pairs) - _SHOWN_PAIRS
    more = f" and {hidden} more" if hidden > 0 else ""
    return ", ".join(pairs[:_SHOWN_PAIRS]) + more


def format_bytes(nbytes: float) -> str:
    """A number of bytes with a binary unit.

    >>> format_bytes(1536 << 20)
    '1.50 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:  # noqa: PLR2004 - the step between the units
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"
