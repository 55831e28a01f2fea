"""Fair timing: every contestant runs once in each round, in an order that each round shuffles.

The speed of a machine drifts. Contestants that run in turn see the same drift, and a shuffled order
keeps any of them from always inheriting the heap or the caches of the same predecessor.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Timing", "interleaved", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one contestant, round by round."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.3f}..{max(self.seconds):.3f}"

    @property
    def noise(self) -> float:
        """Median distance from the median, relative to it."""
        distances = [abs(seconds - self.median_s) for seconds in self.seconds]
        return statistics.median(distances) / self.median_s if self.median_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"median_s": self.median_s, "seconds": list(self.seconds)}


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
