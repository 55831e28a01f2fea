"""Interleaved rounds: every arm runs once in each of them, in an order that each round shuffles."""

from __future__ import annotations

import gc
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checkpoints import poison, raw_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.arms import Arm
    from benchmarks.cases import Case

__all__ = ["Measured", "Timing", "check_arms", "interleaved", "measure_arms", "time_rounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one arm, round by round."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """The fastest and the slowest, for tables."""
        return f"{min(self.seconds):.3f}..{max(self.seconds):.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"median_s": self.median_s, "seconds": list(self.seconds)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the arms took, and what they said of it.

    Attributes:
        timings: by name of the arm.
        readers: those that did the checked run, by name of their arm.
    """

    timings: Mapping[str, Timing]
    readers: Mapping[str, Any]


def measure_arms(
    arms: Sequence[Arm], case: Case, *, rounds: int, check_counts: bool = False
) -> Measured:
    """Check every arm, then time the run of each in interleaved rounds.

    Plans and readers are made anew for each run and outside of the time.

    Args:
        arms: the contestants, torch's reader first.
        case: what they load.
        rounds: how often each of them is timed.
        check_counts: the checked run is the first of the rounds, where each takes long.
    """
    readers, once = check_arms(arms, case)

    def preparation(arm: Arm) -> Callable[[], Callable[[], object]]:
        return lambda: arm.prepare(case).run

    repeated = {arm.name: preparation(arm) for arm in arms if not arm.is_slow}
    timed_again = time_rounds(repeated, rounds=rounds - check_counts)
    if check_counts:
        timed_again = {
            name: Timing(seconds=once[name].seconds + timing.seconds)
            for name, timing in timed_again.items()
        }
    timings = once | timed_again
    return Measured(timings=timings, readers=readers)


def check_arms(arms: Sequence[Arm], case: Case) -> tuple[dict[str, Any], dict[str, Timing]]:
    """Run every arm once and compare each bit with what the first of them, torch's reader, loaded.

    Raises:
        RuntimeError: an arm loaded something else; its time would mean nothing.
    """
    readers, timings = {}, {}
    expected: dict[str, torch.Tensor] = {}
    for arm in arms:
        prepared = arm.prepare(case)
        poison(case.targets)
        timings[arm.name] = Timing(seconds=(timed(prepared.run),))
        if not expected:
            expected = {name: tensor.clone() for name, tensor in case.targets.items()}
        _require_equal(arm.name, expected, case.targets)
        readers[arm.name] = prepared.reader
    return readers, timings


def _require_equal(
    arm: str, expected: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]
) -> None:
    for name, tensor in expected.items():
        # Bytes, not numbers: a NaN does not equal itself.
        if not torch.equal(raw_bytes(tensor), raw_bytes(loaded[name])):
            raise RuntimeError(f"{arm!r} loaded other bytes into {name!r} than torch's reader")


def time_rounds(
    preparations: Mapping[str, Callable[[], Callable[[], object]]], *, rounds: int
) -> dict[str, Timing]:
    """Time what each preparation returns, once in each round.

    The order is another one in each round, but the same in every run: an arm that always came
    behind the same one would always inherit its heap and what a rate-limited disk saved up
    meanwhile.

    Args:
        preparations: by name; what they do themselves is not timed.
        rounds: how often each of them runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in preparations}
    for _, name in interleaved(list(preparations), rounds=rounds):
        seconds[name].append(timed(preparations[name]()))
    return {name: Timing(seconds=tuple(values)) for name, values in seconds.items()}


def interleaved(names: Sequence[str], *, rounds: int) -> Iterator[tuple[int, str]]:
    """Yield ``(round, name)`` in running order; rounds are counted from 0."""
    for number in range(rounds):
        # Seeded by the round: the same command runs in the same order again.
        for name in random.Random(number).sample(names, k=len(names)):  # noqa: S311 - no secret
            yield number, name


def timed(run: Callable[[], object]) -> float:
    """Seconds that ``run`` takes."""
    gc.collect()  # garbage of an earlier run is not charged to this one
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
