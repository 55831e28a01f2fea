"""Runs the arms of ``paraload bench``: each once to check it, then all of them in turn.

    check     targets poisoned, memory watched, bits compared with those that torch's reader loaded
    measure   rounds: prepare, drop the page cache if the state is cold, run against the clock

An arm that fails is out, and its error is kept; the others go on.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from paraload.cli._bench_advice import Setting
from paraload.cli._bench_arms import RAW
from paraload.cli._memory import PeakMemory
from paraload.cli._rounds import Timing, interleaved, timed
from paraload.report import ReadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paraload.cli._bench_arms import Arm
    from paraload.cli._bench_case import Case
    from paraload.cli._status import StatusLine

__all__ = ["Contest", "Entry"]


@dataclass(slots=True, kw_only=True)
class Entry:
    """What is known of an arm.

    Attributes:
        arm: it.
        error: why it is out.
        peak_bytes: memory above the targets, at most.
        bytes_read: in one run: as paraload reports them, of others as the system counts them;
            ``None`` where it does not.
        seconds: of all runs, by state of the page cache.
        reports: of the fastest run, by state; paraload writes them.
    """

    arm: Arm
    error: str | None = None
    peak_bytes: int | None = None
    bytes_read: int | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    reports: dict[str, ReadReport] = field(default_factory=dict)

    def workers(self, *states: str) -> int | None:
        """Readers at once, at most; where paraload found out how many, in these states or any."""
        if self.arm.workers is not None:
            return self.arm.workers
        found = [report for state, report in self.reports.items() if not states or state in states]
        return max((report.workers for report in found), default=None)

    def setting(self) -> Setting | None:
        """How paraload has read; ``None`` for others, and where it went no other way than asked."""
        workers = self.workers()
        if self.arm.executor is None or workers is None:
            return None
        if self.arm.direct_io and not any(it.bytes_direct for it in self.reports.values()):
            return None
        return Setting(self.arm.executor, workers, self.arm.direct_io)

    def timings(self) -> dict[str, Timing]:
        """By state; nothing if the arm is out."""
        if self.error is not None:
            return {}
        return {state: Timing(seconds=tuple(all_s)) for state, all_s in self.seconds.items()}


class Contest:
    """The arms of one case.

    Args:
        case: what they load.
        arms: the first one's bits are the right ones, if it does not fail.
        status: told what runs.
    """

    def __init__(self, case: Case, arms: Sequence[Arm], status: StatusLine) -> None:
        self._case = case
        self._status = status
        self.entries = [Entry(arm=arm) for arm in arms]
        self._expected: list[int] | None = None
        self._expected_of = ""

    @property
    def is_over(self) -> bool:
        """Every arm is out."""
        return all(entry.error is not None for entry in self.entries)

    def check(self) -> None:
        """Run every arm once."""
        for number, entry in enumerate(self.entries, start=1):
            self._status.show(f"check {number} of {len(self.entries)}: {entry.arm.name}")
            self._guarded(entry, self._check)

    def measure(self, state: str, rounds: int, before_run: Callable[[], object]) -> None:
        """Run every arm ``rounds`` times; ``before_run`` makes the state."""
        entries = {entry.arm.name: entry for entry in self.entries if entry.error is None}
        runs = rounds * len(entries)
        started = time.monotonic()
        for done, (number, name) in enumerate(interleaved(list(entries), rounds=rounds)):
            left = (time.monotonic() - started) / done * (runs - done) if done else None
            self._status.show(
                f"{state}, round {number + 1} of {rounds}: {name}"
                + (f" (about {left:.0f} s left)" if left is not None else "")
            )
            if entries[name].error is None:
                self._guarded(entries[name], lambda entry: self._measure(entry, state, before_run))

    def _guarded(self, entry: Entry, step: Callable[[Entry], None]) -> None:
        try:
            step(entry)
        except Exception as error:  # noqa: BLE001 - readers raise anything; it is shown at the end
            entry.error = f"{type(error).__name__}: {error}"

    def _check(self, entry: Entry) -> None:
        run = entry.arm.prepare()
        self._case.poison()
        with PeakMemory() as memory:
            run()
        entry.peak_bytes = memory.peak_bytes
        if entry.arm.reader != RAW:  # which has places for plain tensors only
            self._compare(entry.arm.name)

    def _compare(self, name: str) -> None:
        loaded = self._case.checksums()
        if self._expected is None:
            self._expected, self._expected_of = loaded, name
        for record, expected, got in zip(self._case.records, self._expected, loaded, strict=True):
            if got != expected:
                raise ValueError(
                    f"{record.index.fqn!r} differs from what {self._expected_of} loaded"
                )

    def _measure(self, entry: Entry, state: str, before_run: Callable[[], object]) -> None:
        run = entry.arm.prepare()
        answers: list[object] = []
        before_run()
        read_before = _bytes_read_by_system()
        seconds = timed(lambda: answers.append(run()))
        report = answers[0] if isinstance(answers[0], ReadReport) else None
        if report is not None:
            entry.bytes_read = report.bytes_read
        elif read_before is not None:
            entry.bytes_read = (_bytes_read_by_system() or read_before) - read_before
        all_s = entry.seconds.setdefault(state, [])
        if report is not None and seconds < min(all_s, default=math.inf):
            entry.reports[state] = report
        all_s.append(seconds)


def _bytes_read_by_system() -> int | None:
    """What this process, and its children that have ended, have read until now."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return None
    return int(dict(line.split(": ") for line in text.splitlines())["rchar"])
