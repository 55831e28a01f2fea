"""ReadReport: what a load did, for people and programs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraload._text import counted, printable
from paraload._trace import trace_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["FileTiming", "ReadReport", "TaskTiming", "format_bytes", "pairs_text"]

_SHOWN_PAIRS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTiming:
    """When a file was first and last worked on, in seconds since the load began, and its bytes."""

    started_s: float
    ended_s: float
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTiming:
    """One task of a worker: what it read, and when, in seconds since the load began.

    Attributes:
        worker: name of the thread or process; the caller's own thread may read too.
        path: of the file, relative to the checkpoint.
        start: first byte of the range that the task worked on.
        end: one past its last byte.
        bytes_read: of that range: headers alone, where payloads were looked for; and of the
            checksum behind it, where a record ends.
        started_s: when it began.
        ended_s: when it was done.
        tasks: more than one in very long loads, where neighbours are joined.
    """

    worker: str
    path: str
    start: int
    end: int
    bytes_read: int
    started_s: float
    ended_s: float
    tasks: int = 1


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
        bytes_direct: bytes of ``bytes_read`` that did not go through the page cache.
        fallbacks: reason -> items that could not go the fast way.
        conversions: conversion of the dtype -> items.
        overwritten: target -> the target that replaced its values: they share memory, and were
            saved with different values.
        unverified: reason -> items whose bytes could not be checked.
        peak_in_flight_bytes: most staging memory that was reserved at once.
        file_timings: by path.
        tasks: pieces of work that readers were given.
        timeline: those tasks by their beginnings. Ten thousand entries at most: of a load with more
            tasks, neighbours are joined.
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
        """Needed bytes a second."""
        return self.bytes_needed / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything but the time line, as plain types for JSON."""
        values = dataclasses.asdict(dataclasses.replace(self, timeline=()))
        del values["timeline"]
        return values

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the time line as a trace that https://ui.perfetto.dev and chrome://tracing open.

        One track for each worker, one slice for each task, and the throughput of all.

        Args:
            path: of the JSON file.

        Raises:
            OSError: it cannot be written.
        """
        Path(path).write_text(json.dumps(trace_of(self)), encoding="utf-8")

    def __str__(self) -> str:
        """A few lines for a person."""
        past_cache = ""
        if self.bytes_direct:
            past_cache = f" ({format_bytes(self.bytes_direct)} of it past the page cache)"
        lines = [
            (
                f"loaded {counted(self.items, 'item')}, {format_bytes(self.bytes_needed)} from"
                f" {counted(self.files, 'file')} in {self.seconds:.3f} s"
                f" ({format_bytes(self.bytes_per_second)}/s, {self.executor},"
                f" {counted(self.workers, 'worker')})"
            ),
            (
                f"read {format_bytes(self.bytes_read)} in {counted(self.reads, 'request')}"
                f"{past_cache}, CRC-32 checked for {format_bytes(self.bytes_verified)}"
            ),
        ]
        if self.unverified:
            lines.append(f"not checked: {_counts(self.unverified)}")
        if self.conversions:
            lines.append(f"converted: {_counts(self.conversions)}")
        if self.overwritten:
            lines.append(f"overwritten: {pairs_text(self.overwritten)}")
        if self.fallbacks:
            lines.append(f"slow paths: {_counts(self.fallbacks)}")
        if self.retries:
            lines.append(f"retried requests: {self.retries}")
        return "\n".join(map(printable, lines))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(counts.items()))


def pairs_text(overwritten: Mapping[str, str]) -> str:
    """The first few pairs, and how many more there are.

    >>> pairs_text({"head.weight": "embedding.weight"})
    "'head.weight' by 'embedding.weight'"
    """
    pairs = [f"{target!r} by {by!r}" for target, by in overwritten.items()]
    hidden = len(pairs) - _SHOWN_PAIRS
    more = f" and {hidden} more" if hidden > 0 else ""
    return ", ".join(pairs[:_SHOWN_PAIRS]) + more


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
