"""PURE: which setting to recommend, from the measurements.

The slowness of a setting is its median divided by the best median of the same cache state,
multiplied over the states; a ratio within the noise of a state counts as 1. Of all settings within
5 % of the fastest, the simplest is recommended: without direct I/O, with the fewest workers, the
defaults before anything else, threads before processes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

from paraload._text import counted

AUTO: Final = "auto"
#: Simplest first.
_EXECUTORS: Final = (AUTO, "sequential", "threads", "processes", "pool")
#: Smaller differences count as none. The measured noise may raise the limit, but not further.
_LEAST_NOISE: Final = 0.05
_MOST_NOISE: Final = 0.15


class Setting(NamedTuple):
    """How paraload reads; with ``"auto"`` it chose the number of workers itself."""

    executor: str
    workers: int
    direct_io: bool = False

    def __str__(self) -> str:
        if self.executor == AUTO:
            name = "paraload by itself" + " with direct_io" * self.direct_io
            return f"{name} ({counted(self.workers, 'worker')})"
        names = {"sequential": "worker (sequential)", "pool": "processes (pool)"}
        return f"{self.workers} {names.get(self.executor, self.executor)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The recommended setting."""

    setting: Setting
    is_fastest: bool  # no setting has a better median in any state
    speedups: Mapping[str, float]  # torch's median / the setting's, by state
    torch_is_faster: bool  # over all states, by more than noise


def advise(
    settings: Mapping[Setting, Mapping[str, Sequence[float]]], torch: Mapping[str, Sequence[float]]
) -> Advice | None:
    """The advice from the seconds of all runs by state; ``None`` if no setting has every state.

    ``torch`` is empty if torch's reader failed.
    """
    states = list(dict.fromkeys(state for runs in (*settings.values(), torch) for state in runs))
    whole = {setting: runs for setting, runs in settings.items() if runs.keys() == set(states)}
    if not states or not whole:
        return None
    best = {state: min(whole, key=lambda it: median(whole[it][state])) for state in states}
    slowness = {
        setting: math.prod(_slowness(runs[state], whole[best[state]][state]) for state in states)
        for setting, runs in whole.items()
    }
    limit = min(slowness.values()) * (1 + _LEAST_NOISE)
    chosen = min(
        (setting for setting, value in slowness.items() if value <= limit),
        key=lambda it: (it.direct_io, it.workers, _EXECUTORS.index(it.executor)),
    )
    speedups = {it: median(torch[it]) / median(whole[chosen][it]) for it in states if it in torch}
    mean_speedup = math.prod(speedups.values()) ** (1 / max(1, len(speedups)))  # 1 without any
    return Advice(
        setting=chosen,
        is_fastest=set(best.values()) == {chosen},
        speedups=speedups,
        torch_is_faster=mean_speedup < 1 - _LEAST_NOISE,
    )


def _slowness(seconds: Sequence[float], best: Sequence[float]) -> float:
    best_s = median(best)
    noise = median(abs(one_s - best_s) for one_s in best) / best_s
    ratio = median(seconds) / best_s
    return ratio if ratio > 1 + min(_MOST_NOISE, max(_LEAST_NOISE, noise)) else 1.0
