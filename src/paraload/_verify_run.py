"""The records of a checkpoint on their way through the threads that check them.

    records, by file and offset --look--> all right, or a finding
        (small ones together)      |
                                   `--> a big payload --pieces--> sums --compare--> likewise

The caller's thread alone keeps the books. A record's pieces are summed before the next records are
looked at, so that files are read from front to back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from paraload._daemons import Answer, DaemonThreads
from paraload._interrupts import stop_if_signalled
from paraload._plan import PlanKnobs, first_tasks
from paraload._result import ReadTally
from paraload._verify_alike import KnownArchives
from paraload._verify_records import IN_MEMORY_BYTES, SCRATCH_BYTES, check_records, sum_piece
from paraload._verify_report import Finding
from paraload._work import Meter, item_error
from paraload.errors import ItemReadError
from paraload.progress import ReadProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paraload._task import LocateTask, RecordSpec, RecordsTask
    from paraload._verify_records import Checked, PayloadCheck
    from paraload._verify_report import Part
    from paraload._work import Work
    from paraload.progress import ProgressHook

__all__ = ["VerifyRun"]

logger = logging.getLogger("paraload")

#: A thread needs so much memory, for small records or for a piece of a big one.
_KNOBS: Final = PlanKnobs(
    locate_from_bytes=IN_MEMORY_BYTES + 1, locate_batch=1, block_bytes=SCRATCH_BYTES
)


@dataclass(slots=True)
class _Summing:
    """A record whose payload is being summed."""

    spec: RecordSpec
    checked: Checked
    payload: PayloadCheck
    pieces: list[tuple[int, int]]
    crcs: dict[int, int] = field(default_factory=dict)
    left: int = 0
    is_failed: bool = False


class _Running(NamedTuple):
    """A call that is queued or running."""

    meter: Meter
    take: Callable[[Answer], None]
    extent: tuple[int, int]

    def __str__(self) -> str:
        start, end = self.extent
        return f"{self.meter.path!r} bytes [{start}, {end})"


class VerifyRun:
    """Checks records.

    Args:
        work: where they are, and how to decode them.
        specs: the records.
        parts: what each of them is, by its number.
        workers: threads.

    Attributes:
        verified_bytes: compared with a CRC-32, and right.
        unverifiable_bytes: that have none.
        uncompared: tensors whose dtype and shape could not be compared with the metadata.
        tally: what reading them took.
    """

    def __init__(
        self, work: Work, specs: Sequence[RecordSpec], parts: Sequence[Part], workers: int
    ) -> None:
        self.verified_bytes = self.unverifiable_bytes = self.uncompared = 0
        self.tally = ReadTally()
        self._cancelled = threading.Event()
        self._work = replace(work, is_cancelled=self._cancelled.is_set)
        self._parts = parts
        self._workers = workers
        self._known = KnownArchives()
        self._scratch = _Scratch()
        self._tasks = deque(
            first_tasks(sorted(specs, key=attrgetter("path", "start")), knobs=_KNOBS)
        )
        self._pieces: deque[tuple[_Summing, int]] = deque()
        self._running: dict[int, _Running] = {}
        self._keys = count()
        self._findings: list[Finding] = []
        self._items_left = Counter(spec.path for spec in specs)
        self._files_total = len(self._items_left)
        self._items_total, self._items_done = len(specs), 0
        self._bytes_total, self._bytes_done = sum(spec.length for spec in specs), 0
        self._started_s = time.monotonic()

    def findings(self, hook: ProgressHook | None) -> list[Finding]:
        """Check all of them; what is wrong."""
        timeout_s = self._work.stall_timeout_s
        with DaemonThreads(self._workers, "paraload-verify", timeout_s=timeout_s) as threads:
            try:
                while self._tasks or self._pieces or self._running:
                    self._fill(threads)
                    answer = threads.next(self._running_now)
                    running = self._running.pop(answer.key)
                    self.tally.add(running.meter.tally)
                    running.take(answer)
                    if hook is not None:
                        hook(self._snapshot())
                    stop_if_signalled()
            finally:
                self._cancelled.set()
            if threads.refusal:
                self._fall_back(threads.refusal)
        return self._findings

    def _running_now(self) -> str:
        return f"these were being read: {'; '.join(map(str, self._running.values()))}"

    def _fall_back(self, refusal: str) -> None:
        reason = f"threads: {refusal}"
        logger.warning("reading in a slower way: %s", reason)
        known = self.tally.fallback
        self.tally.fallback = f"{known}; {reason}" if known else reason

    def _fill(self, threads: DaemonThreads) -> None:
        """Twice the threads: each finds its next task before the caller has seen its last."""
        while (self._tasks or self._pieces) and len(self._running) < 2 * self._workers:
            key = next(self._keys)
            if self._pieces:
                summing, number = self._pieces.popleft()
                piece = summing.pieces[number]
                meter = Meter(self._work, summing.spec.path)
                take = partial(self._summed, summing, number)
                self._running[key] = _Running(meter, take, piece)
                threads.submit(key, self._sum, meter, *piece)
            else:
                task = self._tasks.popleft()
                meter = Meter(self._work, task.path)
                self._running[key] = _Running(
                    meter, partial(self._looked, task), (task.start, task.end)
                )
                threads.submit(key, check_records, meter, task, self._known)

    def _looked(self, task: RecordsTask | LocateTask, looked: Answer) -> None:
        for spec, answer in zip(task.specs, looked.result(), strict=True):
            if isinstance(answer, ItemReadError):
                self._found(spec, answer)
                self._leave(spec, None)
            elif answer.payload is None:
                self._leave(spec, answer)
            else:
                self._begin_sum(spec, answer, answer.payload)

    def _begin_sum(self, spec: RecordSpec, checked: Checked, payload: PayloadCheck) -> None:
        pieces = payload.pieces()
        summing = _Summing(spec, checked, payload, pieces, left=len(pieces))
        self._pieces.extend((summing, number) for number in range(summing.left))

    def _summed(self, summing: _Summing, number: int, summed: Answer) -> None:
        summing.left -= 1
        try:
            summing.crcs[number] = summed.result()
            if not summing.left and not summing.is_failed:
                summing.payload.compare(crc for _, crc in sorted(summing.crcs.items()))
        except Exception as error:  # noqa: BLE001 - becomes a finding
            if not summing.is_failed:
                self._found(summing.spec, item_error(error))
            summing.is_failed = True
        if not summing.left:
            self._leave(summing.spec, None if summing.is_failed else summing.checked)

    def _leave(self, spec: RecordSpec, checked: Checked | None) -> None:
        if checked is not None:
            self.verified_bytes += checked.verified_bytes
            self.unverifiable_bytes += checked.unverifiable_bytes
            self.uncompared += not checked.is_compared
        self._items_done += 1
        self._bytes_done += spec.length
        self._items_left[spec.path] -= 1

    def _found(self, spec: RecordSpec, error: ItemReadError) -> None:
        error.path = spec.path
        parts = (self._parts[spec.item],)
        self._findings.append(Finding.of(error, parts, start=spec.start, end=spec.end))

    def _snapshot(self) -> ReadProgress:
        return ReadProgress(
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
            items_done=self._items_done,
            items_total=self._items_total,
            files_done=sum(not left for left in self._items_left.values()),
            files_total=self._files_total,
            seconds=time.monotonic() - self._started_s,
        )

    def _sum(self, meter: Meter, start: int, end: int) -> int:
        """On a thread: the CRC-32 of a piece."""
        return sum_piece(meter, start, end, self._scratch.memory)


class _Scratch(threading.local):
    """Memory of each thread, that it reads into again and again."""

    def __init__(self) -> None:
        self.memory = bytearray(SCRATCH_BYTES)
