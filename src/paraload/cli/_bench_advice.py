"""PURE: which setting to recommend, from what was measured.

The slowness of a setting is its median divided by the best median of the same cache state,
multiplied over the states; a ratio within the noise of a state counts as 1. Of all settings within
5 % of the least slow one, the simplest is recommended: through the page cache, fewest workers, then
nothing set at all, then threads before processes. The advice also says whether torch's own reader
is more than 5 % faster than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paraload.cli._rounds import Timing

__all__ = ["Advice", "Setting", "advise"]

#: Smaller differences count as none. The runs show how noisy the storage is, but no noise excuses
#: a third.
_LEAST_NOISE: Final = 0.05
_MOST_NOISE: Final = 0.15
#: Simplest first.
_EXECUTORS: Final = ("auto", "sequential", "threads", "processes", "pool")


class Setting(NamedTuple):
    """How paraload reads; with ``"auto"`` it has chosen the number of workers itself."""

    executor: str
    workers: int
    direct_io: bool = False

    def __str__(self) -> str:
        if self.executor == "auto":
            name = "paraload by itself" + " with direct_io" * self.direct_io
            return f"{name} ({self.workers} worker{'s' * (self.workers != 1)})"
        if self.workers == 1:
            return "1 worker (sequential)"
        return f"{self.workers} {'processes (pool)' if self.executor == 'pool' else self.executor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The recommended setting.

    Attributes:
        is_fastest: no setting has a better median in any state.
        speedups: torch's median divided by the setting's, by state; empty if torch's reader failed.
        torch_is_faster: over all states, by more than noise.
    """

    setting: Setting
    is_fastest: bool
    speedups: Mapping[str, float]
    torch_is_faster: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        executor, workers, direct_io = self.setting
        return {
            "executor": executor,
            "direct_io": direct_io,
            "max_workers": None if executor == "auto" else workers,
            "speedup_over_torch": dict(self.speedups),
            "torch_is_faster": self.torch_is_faster,
        }


def advise(
    settings: Mapping[Setting, Mapping[str, Timing]], torch: Mapping[str, Timing]
) -> Advice | None:
    """The advice, or ``None`` if no setting was measured in every state.

    Args:
        settings: timings by state.
        torch: timings of torch's reader; empty if it failed.
    """
    states = {state for timings in (*settings.values(), torch) for state in timings}
    whole = {name: timings for name, timings in settings.items() if timings.keys() == states}
    if not states or not whole:
        return None
    order = next(iter(whole.values()))  # in the order of measuring
    best = {
        state: min((timings[state] for timings in whole.values()), key=lambda it: it.median_s)
        for state in order
    }
    slowness = {name: _slowness(timings, best) for name, timings in whole.items()}
    limit = min(slowness.values()) * (1 + _LEAST_NOISE)
    chosen = min(
        (name for name, value in slowness.items() if value <= limit),
        key=lambda name: (name.direct_io, name.workers, _EXECUTORS.index(name.executor)),
    )
    medians = {state: timing.median_s for state, timing in whole[chosen].items()}
    speedups = {state: torch[state].median_s / medians[state] for state in best if state in torch}
    return Advice(
        setting=chosen,
        is_fastest=all(whole[chosen][state] is best[state] for state in best),
        speedups=speedups,
        torch_is_faster=bool(speedups)
        and math.prod(speedups.values()) ** (1 / len(speedups)) < 1 - _LEAST_NOISE,
    )


def _slowness(timings: Mapping[str, Timing], best: Mapping[str, Timing]) -> float:
    slowness = 1.0
    for state, timing in best.items():
        ratio = timings[state].median_s / timing.median_s
        noise = min(_MOST_NOISE, max(_LEAST_NOISE, timing.noise))
        slowness *= ratio if ratio > 1 + noise else 1.0
    return slowness
