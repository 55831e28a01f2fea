"""What ``paraload bench`` measures, and what it finds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paraload.cli._bench_advice import Advice
    from paraload.cli._bench_arms import Arm
    from paraload.cli._bench_case import Case
    from paraload.report import ReadReport

__all__ = ["Machine", "Part", "Plan", "Result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it is measured."""

    cores: int
    free_memory_bytes: int
    file_system: str
    kernel: str
    python: str
    torch: str
    paraload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How much of the checkpoint is read: saved pieces of tensors, and objects."""

    nbytes: int
    tensors: int
    objects: int
    files: int
    whole_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is going to be measured; every arm runs ``rounds`` times in each cache state."""

    path: Path
    machine: Machine
    part: Part
    case: Case
    arms: Sequence[Arm]
    rounds: int
    with_cold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was found.

    Attributes:
        states: of the page cache: how each was made, in the order of measuring.
        not_cold: why the cold state was not measured; "" if it was.
        advice: ``None`` if no setting of paraload was measured.
    """

    plan: Plan
    states: Mapping[str, str]
    not_cold: str
    advice: Advice | None

    @property
    def failed(self) -> list[Arm]:
        return [arm for arm in self.plan.arms if arm.error is not None]

    @property
    def notes(self) -> list[str]:
        """Everything that ran otherwise than asked, each told once."""
        found: list[str] = []
        for arm in self.plan.arms:
            for report in arm.reports.values():
                asked, ran = (arm.executor, arm.asked_workers), (report.executor, report.workers)
                if arm.asked_workers and ran != asked:
                    found.append(f"{arm.name}: ran as {ran[0]} with {ran[1]}")
                for what, counts in (
                    ("slow path", report.fallbacks),
                    ("CRC-32 not checked", report.unverified),
                ):
                    found += [f"{what}: {reason} ({count})" for reason, count in counts.items()]
        return list(dict.fromkeys(found))

    def best_s(self, reader: str, state: str) -> float | None:
        """The best median of all arms of ``reader``."""
        timings = [arm.timings.get(state) for arm in self.plan.arms if arm.reader == reader]
        return min((timing.median_s for timing in timings if timing is not None), default=None)

    @property
    def shown(self) -> tuple[str, ReadReport] | None:
        """State and report of the time line: the recommended setting in the colder state."""
        state = list(self.states)[-1]
        for arm in self.plan.arms:
            if self.advice is not None and arm.setting == self.advice.setting:
                return state, arm.reports[state]
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
            "arms": [self._arm_dict(arm) for arm in self.plan.arms],
            "notes": self.notes,
            "recommended": None if self.advice is None else self.advice.to_dict(),
        }

    def _arm_dict(self, arm: Arm) -> dict[str, Any]:
        nbytes = self.plan.part.nbytes
        return {
            "reader": arm.reader,
            "executor": arm.executor,
            "direct_io": arm.direct_io,
            "workers": arm.workers(),
            "error": arm.error,
            "bytes_needed": nbytes,
            "bytes_read": arm.bytes_read,
            "peak_bytes": arm.peak_bytes,
            "timings": {
                state: {
                    **timing.to_dict(),
                    "bytes_per_second": nbytes / timing.median_s,
                    "workers": arm.workers(state),
                }
                for state, timing in arm.timings.items()
            },
        }
