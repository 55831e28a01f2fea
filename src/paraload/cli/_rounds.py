"""Fair timing: every contestant runs once in each round, in an order that each round shuffles.

Machines get slower and faster while they are watched. What runs in turn meets the same weather, and
who runs behind whom changes, so that none always inherits a heap or a cache from the same one.
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
    """What one contestant took, in seconds, round by round."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """From the shortest to the longest."""
        return f"{min(self.seconds):.3f}..{max(self.seconds):.3f}"

    @property
    def noise(self) -> float:
        """How far a run is from the median, at the median, as a part of it."""
        distances = [abs(seconds - self.median_s) for seconds in self.seconds]
        return statistics.median(distances) / self.median_s if self.median_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"median_s": self.median_s, "seconds": list(self.seconds)}


def interleaved(names: Sequence[str], *, rounds: int) -> Iterator[tuple[int, str]]:
    """Who runs next: ``(round, name)``, rounds counted from 0."""
    for number in range(rounds):
        # By the number of the round: the same command runs in the same order again.
        for name in random.Random(number).sample(names, k=len(names)):  # noqa: S311 - no secret
            yield number, name


def timed(run: Callable[[], object]) -> float:
    """Seconds that ``run`` takes."""
    gc.collect()  # what an earlier run left behind is not this one's to clean up
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
