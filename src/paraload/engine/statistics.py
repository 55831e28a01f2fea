"""Counts of a load: for the progress hook while it runs, for the report at its end."""

from __future__ import annotations

import logging
import time
from collections import Counter

from paraload._text import printable
from paraload.core.results import Audited, ReadTally, TaskResult
from paraload.engine.items import Item
from paraload.engine.timeline import Timeline
from paraload.progress import ReadProgress
from paraload.report import FileTiming, ReadReport, pairs_text

logger = logging.getLogger("paraload")


class Ledger:
    """Everything that is counted, by the one thread that handles results.

    Attributes:
        bytes_unverifiable: bytes of audited records that were written without a CRC-32.
        uncompared: audited tensors whose dtype and shape could not be compared with the metadata.
    """

    def __init__(
        self,
        items_by_file: Counter[str],
        *,
        bytes_total: int,
        unverified_reason: str,
        started_s: float,
    ) -> None:
        self._unverified_reason = unverified_reason
        self._started_s = started_s
        self._bytes_done = 0
        self._bytes_total = bytes_total
        self._bytes_verified = 0
        self._tally = ReadTally()
        self._timeline = Timeline(started_s=started_s)
        self._items_total = items_by_file.total()
        self._items_done = 0
        self._items_left = items_by_file
        self._files_total = len(self._items_left)
        self._files_done = 0
        self._files: dict[str, FileTiming] = {}
        self._fallbacks: Counter[str] = Counter()
        self._items_fallen_back: set[int] = set()
        self._unverified: Counter[str] = Counter()
        self._overwritten: dict[str, str] = {}
        self.bytes_unverifiable = 0
        self.uncompared = 0

    def count(self, result: TaskResult) -> None:
        """Note what a task has read, and when."""
        self._timeline.add(result)
        self._tally.add(result.tally)
        if result.tally.fallback:
            self._fell_back(result)
        started = result.started_s - self._started_s
        ended = result.ended_s - self._started_s
        nbytes = result.tally.bytes_read
        known = self._files.get(result.task.path)
        if known is not None:
            started, ended = min(started, known.started_s), max(ended, known.ended_s)
            nbytes += known.bytes_read
        self._files[result.task.path] = FileTiming(
            started_s=started, ended_s=ended, bytes_read=nbytes
        )

    def replan(self, item: Item, nbytes: int) -> None:
        """The item turned out to bring ``nbytes``."""
        self._bytes_total += nbytes - item.planned_bytes
        item.planned_bytes = nbytes

    def arrived(self, nbytes: int) -> None:
        """``nbytes`` are where they belong, or wait for the planner."""
        self._bytes_done += nbytes

    def checked(self, verified_bytes: int, *, unverified: int, reason: str = "") -> None:
        """So many bytes were proved right, and so many items could not be; ``reason`` says why."""
        self._bytes_verified += verified_bytes
        if unverified:
            self._unverified[reason or self._unverified_reason] += unverified

    def audited(self, outcome: Audited) -> None:
        """A record is right, but for a payload that is still to be summed."""
        self._bytes_verified += outcome.verified_bytes
        self.bytes_unverifiable += outcome.unverifiable_bytes
        self.uncompared += not outcome.is_compared

    def fall_back(self, reason: str, items: int = 1) -> None:
        """Items go a slower way; the log says so once for each reason."""
        if reason not in self._fallbacks:
            logger.warning("reading in a slower way: %s", printable(reason))
        self._fallbacks[reason] += items

    def overwrote(self, target: str, by: str) -> None:
        """The values of ``target`` were replaced by those of ``by``, which shares its memory."""
        self._overwritten[target] = by

    def _fell_back(self, result: TaskResult) -> None:
        """A task says so; items that are read by several tasks are counted once."""
        items = set(result.task.items) - self._items_fallen_back
        self._items_fallen_back |= items
        self.fall_back(result.tally.fallback, len(items))

    def left(self, path: str, items: int) -> None:
        """So many items of a file are done or failed."""
        self._items_done += items
        self._items_left[path] -= items
        self._files_done += not self._items_left[path]

    def snapshot(self) -> ReadProgress:
        """How far it is."""
        return ReadProgress(
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
            items_done=self._items_done,
            items_total=self._items_total,
            files_done=self._files_done,
            files_total=self._files_total,
            seconds=time.monotonic() - self._started_s,
        )

    def report(
        self, *, workers: int, executor: str, peak_bytes: int, conversions: dict[str, int]
    ) -> ReadReport:
        """What it was."""
        if self._overwritten:
            logger.warning(
                "targets that share memory were saved with different values; the last one wins, as"
                " in torch (strict=True makes this an error): %s",
                pairs_text(self._overwritten),
            )
        return ReadReport(
            bytes_needed=self._bytes_done,
            bytes_read=self._tally.bytes_read,
            bytes_verified=self._bytes_verified,
            reads=self._tally.reads,
            items=self._items_total,
            files=self._files_total,
            seconds=time.monotonic() - self._started_s,
            workers=workers,
            executor=executor,
            retries=self._tally.retries,
            bytes_direct=self._tally.bytes_direct,
            fallbacks=dict(self._fallbacks),
            unverified=dict(self._unverified),
            conversions=conversions,
            overwritten=self._overwritten,
            peak_in_flight_bytes=peak_bytes,
            file_timings=self._files,
            tasks=self._timeline.tasks,
            timeline=self._timeline.entries(),
        )
