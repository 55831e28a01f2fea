"""Counts of a load: for the progress hook while it runs, for the report at its end."""

import logging
import time
from collections import Counter

from paraload._text import printable
from paraload.core.results import ReadTally, TaskResult
from paraload.engine.timeline import Timeline
from paraload.progress import ReadProgress
from paraload.report import ReadReport, pairs_text

logger = logging.getLogger("paraload")


class Statistics:
    """Everything that is counted, by the one thread that handles results.

    Attributes:
        bytes_total: expected bytes of all items; corrected when an item turns out to have others.
        bytes_done: bytes that are in their targets, or wait for the planner.
        bytes_unverifiable: bytes of audited records that were written without a CRC-32.
        uncompared: audited tensors whose dtype and shape could not be compared with the metadata.
        overwritten: targets that lost their values, each with the target that overwrote it.
    """

    def __init__(
        self, items_by_file: Counter[str], *, bytes_total: int, unverified: str, started_s: float
    ) -> None:
        self.bytes_total = bytes_total
        self.bytes_done = self.bytes_verified = self.bytes_unverifiable = self.uncompared = 0
        self.overwritten: dict[str, str] = {}
        self._unverified_reason = unverified
        self._started_s = started_s
        self._tally = ReadTally()
        self._timeline = Timeline(started_s=started_s)
        self._items_total = items_by_file.total()
        self._items_left = items_by_file
        self._items_done = self._files_done = 0
        self._fallbacks: Counter[str] = Counter()
        self._items_fallen_back: set[int] = set()
        self._unverified: Counter[str] = Counter()

    def count(self, result: TaskResult) -> None:
        """Note what a task has read, and when."""
        self._timeline.add(result)
        self._tally.add(result.tally)
        if result.tally.fallback:  # items that are read by several tasks are counted once
            items = set(result.task.items) - self._items_fallen_back
            self._items_fallen_back |= items
            self.fall_back(result.tally.fallback, len(items))

    def checked(self, verified_bytes: int, *, unverified: int, reason: str = "") -> None:
        """Checksums prove ``verified_bytes``; ``unverified`` items could not be checked."""
        self.bytes_verified += verified_bytes
        if unverified:
            self._unverified[reason or self._unverified_reason] += unverified

    def fall_back(self, reason: str, items: int = 1) -> None:
        """Items take a slow path; each reason is logged once."""
        if reason not in self._fallbacks:
            logger.warning("reading in a slower way: %s", printable(reason))
        self._fallbacks[reason] += items

    def left(self, path: str, items: int) -> None:
        """``items`` of a file are done or have failed."""
        self._items_done += items
        self._items_left[path] -= items
        self._files_done += not self._items_left[path]

    def snapshot(self) -> ReadProgress:
        return ReadProgress(
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            items_done=self._items_done,
            items_total=self._items_total,
            files_done=self._files_done,
            files_total=len(self._items_left),
            seconds=time.monotonic() - self._started_s,
        )

    def report(
        self, *, workers: int, executor: str, peak_bytes: int, conversions: dict[str, int]
    ) -> ReadReport:
        if self.overwritten:
            logger.warning(
                "targets that share memory were saved with different values; the last one wins, as"
                " in torch (strict=True makes this an error): %s",
                pairs_text(self.overwritten),
            )
        return ReadReport(
            bytes_needed=self.bytes_done,
            bytes_read=self._tally.bytes_read,
            bytes_verified=self.bytes_verified,
            reads=self._tally.reads,
            items=self._items_total,
            files=len(self._items_left),
            seconds=time.monotonic() - self._started_s,
            workers=workers,
            executor=executor,
            retries=self._tally.retries,
            bytes_direct=self._tally.bytes_direct,
            fallbacks=dict(self._fallbacks),
            unverified=dict(self._unverified),
            conversions=conversions,
            overwritten=self.overwritten,
            peak_in_flight_bytes=peak_bytes,
            file_timings=self._timeline.files,
            tasks=self._timeline.tasks,
            timeline=self._timeline.entries(),
        )
