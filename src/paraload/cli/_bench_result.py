"""What ``paraload bench`` has found out, for whoever shows it."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paraload import __version__
from paraload._resources import file_system_of, usable_cores
from paraload.cli._bench_arms import AUTO, RAW, TORCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paraload.cli._bench_advice import Advice
    from paraload.cli._bench_contest import Entry
    from paraload.cli._rounds import Timing
    from paraload.report import ReadReport

__all__ = ["Machine", "Part", "Plan", "Result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured."""

    cores: int
    free_memory_bytes: int
    file_system: str
    kernel: str
    python: str
    torch: str
    paraload: str

    @classmethod
    def here(cls, path: Path, *, torch: str, free_memory_bytes: int) -> Machine:
        """This one; ``path`` tells the file system."""
        return cls(
            cores=usable_cores(),
            free_memory_bytes=free_memory_bytes,
            file_system=file_system_of(os.fspath(path)),
            kernel=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            torch=torch,
            paraload=__version__,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How much of the checkpoint is read.

    Attributes:
        nbytes: that a job gets.
        tensors: saved pieces of tensors.
        objects: that are no tensors.
        files: read from.
        whole_bytes: of the whole checkpoint.
        limit_bytes: that were allowed.
    """

    nbytes: int
    tensors: int
    objects: int
    files: int
    whole_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is going to be measured.

    Attributes:
        path: of the checkpoint.
        arms: contestants.
        rounds: of every arm in every state of the page cache.
    """

    path: Path
    machine: Machine
    part: Part
    arms: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything.

    Attributes:
        plan: what was to be measured.
        states: of the page cache that were measured: how each was made.
        not_cold: why the cold state was not measured; "" if it was.
        entries: the arms.
        advice: ``None`` if no setting of paraload was measured.
    """

    plan: Plan
    states: Mapping[str, str]
    not_cold: str
    entries: Sequence[Entry]
    advice: Advice | None

    @property
    def failed(self) -> list[Entry]:
        """The arms that are out."""
        return [entry for entry in self.entries if entry.error is not None]

    @property
    def notes(self) -> list[str]:
        """What was otherwise than its name says, each told once."""
        found: dict[str, None] = {}
        for entry in self.entries:
            for report in entry.reports.values():
                ran_as = (report.executor, report.workers)
                if entry.arm.workers and ran_as != (entry.arm.executor, entry.arm.workers):
                    found[f"{entry.arm.name}: ran as {ran_as[0]} with {ran_as[1]}"] = None
                for reason, count in report.fallbacks.items():
                    found[f"slow path: {reason} ({count})"] = None
                for reason, count in report.unverified.items():
                    found[f"CRC-32 not checked: {reason} ({count})"] = None
        return list(found)

    def entry_of(self, reader: str) -> Entry:
        """The first arm of ``reader``."""
        return next(entry for entry in self.entries if entry.arm.reader == reader)

    def torch_s(self, state: str) -> float | None:
        """The median of torch's reader."""
        timing = self.entry_of(TORCH).timings().get(state)
        return None if timing is None else timing.median_s

    def raw_s(self, state: str) -> float | None:
        """The best median of the raw limit, whatever its threads."""
        timings = (e.timings().get(state) for e in self.entries if e.arm.reader == RAW)
        return min((timing.median_s for timing in timings if timing is not None), default=None)

    @property
    def shown(self) -> tuple[str, ReadReport] | None:
        """State and report whose time line is shown: the recommended setting, in the colder one."""
        state = list(self.states)[-1]
        for entry in self.entries:
            if self.advice is not None and entry.setting() == self.advice.setting:
                return state, entry.reports[state]
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "ok": not self.failed,
            "path": str(self.plan.path),
            "machine": dataclasses.asdict(self.plan.machine),
            "part": dataclasses.asdict(self.plan.part),
            "rounds": self.plan.rounds,
            "states": dict(self.states),
            "not_cold": self.not_cold,
            "arms": [self._entry_dict(entry) for entry in self.entries],
            "notes": self.notes,
            "recommended": None if self.advice is None else self._advice_dict(self.advice),
        }

    def _entry_dict(self, entry: Entry) -> dict[str, Any]:
        return {
            "reader": entry.arm.reader,
            "executor": entry.arm.executor,
            "direct_io": entry.arm.direct_io,
            "workers": entry.workers(),
            "error": entry.error,
            "bytes_needed": self.plan.part.nbytes,
            "bytes_read": entry.bytes_read,
            "peak_bytes": entry.peak_bytes,
            "timings": {
                state: {**self._timing_dict(timing), "workers": entry.workers(state)}
                for state, timing in entry.timings().items()
            },
        }

    def _timing_dict(self, timing: Timing) -> dict[str, Any]:
        rate = self.plan.part.nbytes / timing.median_s
        return {**timing.to_dict(), "bytes_per_second": rate}

    def _advice_dict(self, advice: Advice) -> dict[str, Any]:
        return {
            "executor": advice.setting.executor,
            "direct_io": advice.setting.direct_io,
            "max_workers": None if advice.setting.executor == AUTO else advice.setting.workers,
            "speedup_over_torch": dict(advice.speedups),
            "torch_is_faster": advice.torch_is_faster,
        }
