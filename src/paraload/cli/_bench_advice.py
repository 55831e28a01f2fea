"""PURE: which setting to recommend, from what was measured.

A setting's slowness is its median by the best median of the same cache state, multiplied over the
states. Within the noise of a state it is as fast as the best one there: its slowness is 1. Of all
settings within 5 % of the least slow one, the simplest is recommended: by way of the page cache,
fewest workers, then nothing set at all, then threads before processes. Where torch's own reader is
more than 5 % faster than that, it is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from paraload.cli._rounds import Timing

__all__ = ["Advice", "Setting", "advise"]

#: What differs by less is the same. Runs of a noisy storage tell how much it is there, but a third
#: is no noise.
_LEAST_NOISE: Final = 0.05
_MOST_NOISE: Final = 0.15
#: Simplest first.
_EXECUTORS: Final = ("auto", "sequential", "threads", "processes", "pool")


class Setting(NamedTuple):
    """How paraload reads; with ``"auto"`` it has found out the number of workers by itself."""

    executor: str
    workers: int
    direct_io: bool = False

    def __str__(self) -> str:
        """For people."""
        if self.executor == "auto":
            name = "paraload by itself" + " with direct_io" * self.direct_io
            return f"{name} ({self.workers} worker{'s' * (self.workers != 1)})"
        if self.workers == 1:
            return "1 worker (sequential)"
        return f"{self.workers} {'processes (pool)' if self.executor == 'pool' else self.executor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do.

    Attributes:
        setting: of paraload.
        is_fastest: nothing else had a better median, in no state.
        speedups: torch's median by the setting's, by state; empty if torch's reader failed.
        torch_is_faster: over all states, and by more than noise.
    """

    setting: Setting
    is_fastest: bool
    speedups: Mapping[str, float]
    torch_is_faster: bool


def advise(
    settings: Mapping[Setting, Mapping[str, Timing]], torch: Mapping[str, Timing]
) -> Advice | None:
    """The advice, or ``None`` if no setting was measured in every state.

    Args:
        settings: timings by state.
        torch: those of torch's reader; empty if it failed.
    """
    states = dict.fromkeys(state for timings in (*settings.values(), torch) for state in timings)
    whole = {name: timings for name, timings in settings.items() if timings.keys() == states.keys()}
    if not states or not whole:
        return None
    best = {
        state: min((timings[state] for timings in whole.values()), key=_median) for state in states
    }
    slowness = {name: _slowness(timings, best) for name, timings in whole.items()}
    least = min(slowness.values())
    good = [name for name, value in slowness.items() if value <= least * (1 + _LEAST_NOISE)]
    chosen = min(
        good, key=lambda name: (name.direct_io, name.workers, _EXECUTORS.index(name.executor))
    )
    speedups = {
        state: torch[state].median_s / whole[chosen][state].median_s
        for state in best
        if state in torch
    }
    return Advice(
        setting=chosen,
        is_fastest=all(whole[chosen][state] is best[state] for state in best),
        speedups=speedups,
        torch_is_faster=bool(speedups) and _mean(speedups.values()) < 1 - _LEAST_NOISE,
    )


def _median(timing: Timing) -> float:
    return timing.median_s


def _mean(ratios: Collection[float]) -> float:
    return math.prod(ratios) ** (1 / len(ratios))


def _slowness(timings: Mapping[str, Timing], best: Mapping[str, Timing]) -> float:
    slowness = 1.0
    for state, timing in best.items():
        ratio = timings[state].median_s / timing.median_s
        slowness *= ratio if ratio > 1 + _noise(timing) else 1.0
    return slowness


def _noise(timing: Timing) -> float:
    return min(_MOST_NOISE, max(_LEAST_NOISE, timing.noise))
