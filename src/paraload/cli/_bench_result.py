"""What ``paraload bench`` measures, and what it finds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paraload.cli._bench_arms import AUTO, RAW, TORCH

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
    def arms(self) -> Sequence[Arm]:
        return self.plan.arms

    @property
    def failed(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.error is not None]

    @property
    def notes(self) -> list[str]:
        """Everything that ran otherwise than asked, each told once."""
        found: dict[str, None] = {}
        for arm in self.arms:
            for report in arm.reports.values():
                asked, ran = (arm.executor, arm.asked_workers), (report.executor, report.workers)
                if arm.asked_workers and ran != asked:
                    found[f"{arm.name}: ran as {ran[0]} with {ran[1]}"] = None
                for reason, count in report.fallbacks.items():
                    found[f"slow path: {reason} ({count})"] = None
                for reason, count in report.unverified.items():
                    found[f"CRC-32 not checked: {reason} ({count})"] = None
        return list(found)

    def torch_s(self, state: str) -> float | None:
        return self._best_s(TORCH, state)

    def raw_s(self, state: str) -> float | None:
        return self._best_s(RAW, state)

    def _best_s(self, reader: str, state: str) -> float | None:
        timings = [arm.timings.get(state) for arm in self.arms if arm.reader == reader]
        return min((timing.median_s for timing in timings if timing is not None), default=None)

    @property
    def shown(self) -> tuple[str, ReadReport] | None:
        """State and report of the time line: the recommended setting in the colder state."""
        state = list(self.states)[-1]
        for arm in self.arms:
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
            "arms": [self._arm_dict(arm) for arm in self.arms],
            "notes": self.notes,
            "recommended": None if self.advice is None else self._advice_dict(self.advice),
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

    @staticmethod
    def _advice_dict(advice: Advice) -> dict[str, Any]:
        executor, workers, direct_io = advice.setting
        return {
            "executor": executor,
            "direct_io": direct_io,
            "max_workers": None if executor == AUTO else workers,
            "speedup_over_torch": dict(advice.speedups),
            "torch_is_faster": advice.torch_is_faster,
        }
