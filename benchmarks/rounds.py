"""Interleaved rounds: every arm runs once in each of them, and each round begins with another."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checkpoints import poison, raw_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.arms import Arm
    from benchmarks.cases import Case

__all__ = ["Timing", "check_arms", "interleave", "time_rounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one arm took, in seconds, round by round."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """From the shortest to the longest."""
        return f"{min(self.seconds):.3f}..{max(self.seconds):.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"median_s": self.median_s, "seconds": list(self.seconds)}


def check_arms(arms: Sequence[Arm], case: Case) -> dict[str, Any]:
    """Run every arm once and compare each bit with what the first of them, torch's reader, loaded.

    Returns:
        the readers, by name of their arm.

    Raises:
        RuntimeError: an arm loaded something else; its time would mean nothing.
    """
    readers: dict[str, Any] = {}
    expected: dict[str, torch.Tensor] = {}
    for arm in arms:
        prepared = arm.prepare(case)
        poison(case.targets)
        prepared.run()
        if not expected:
            expected = {name: tensor.clone() for name, tensor in case.targets.items()}
        _require_equal(arm.name, expected, case.targets)
        readers[arm.name] = prepared.reader
    return readers


def _require_equal(
    arm: str, expected: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]
) -> None:
    for name, tensor in expected.items():
        # Bytes, not numbers: a NaN does not equal itself.
        if not torch.equal(raw_bytes(tensor), raw_bytes(loaded[name])):
            raise RuntimeError(f"{arm!r} loaded other bytes into {name!r} than torch's reader")


def interleave(arms: Sequence[Arm], case: Case, *, rounds: int) -> dict[str, Timing]:
    """Time ``read_data`` of every arm; plans and readers are made anew and outside of the time."""

    def preparation(arm: Arm) -> Callable[[], Callable[[], object]]:
        return lambda: arm.prepare(case).run

    return time_rounds(
        {arm.name: preparation(arm) for arm in arms},
        rounds=rounds,
        at_most={arm.name: arm.max_rounds for arm in arms},
    )


def time_rounds(
    preparations: Mapping[str, Callable[[], Callable[[], object]]],
    *,
    rounds: int,
    at_most: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """Time what each preparation returns, round-robin.

    Args:
        preparations: by name; what they do themselves is not timed.
        rounds: how often each of them runs.
        at_most: fewer rounds for those that take long.
    """
    names = list(preparations)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in (*names[shift:], *names[:shift]):
            if at_most is not None and number >= at_most[name]:
                continue
            run = preparations[name]()
            gc.collect()
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
            del run
    return {name: Timing(seconds=tuple(values)) for name, values in seconds.items()}
