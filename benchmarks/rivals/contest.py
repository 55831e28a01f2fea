"""Rounds of every contestant that can run, from files that are in the page cache or are not.

probe     one run of each, 16 MiB: who fails is not measured, and its error is kept
measure   check bit by bit, then interleaved rounds (benchmarks.rounds), in one state of the
          page cache, which is made and looked at before every single run
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks.arms import Arm
from benchmarks.page_cache import ensure_cold, ensure_warm, files_below
from benchmarks.rivals.formats import in_format
from benchmarks.rounds import Timing, measure_arms, time_rounds
from paraload.cli.bench.others import Others

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.arms import Prepared
    from benchmarks.cases import Case
    from benchmarks.rivals.contestants import Contestant

__all__ = ["Cache", "Result", "bring", "measure", "prepare", "probe"]

_BRIEF_S: Final = 0.25
_MORE_ROUNDS: Final = 2


class Cache(StrEnum):
    """Where the files are before a run."""

    WARM = "warm"
    COLD = "cold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All contestants on one checkpoint.

    Attributes:
        files: how many the checkpoint has.
        place: where they were before each run.
        payload_bytes: what was loaded.
        timings: by name of the contestant.
        others_cores: cores that the rest of the machine kept busy meanwhile.
    """

    files: int
    place: str
    payload_bytes: int
    timings: Mapping[str, Timing]
    others_cores: float

    @property
    def title(self) -> str:
        """For tables and pictures."""
        files = f"{self.files} file{'s' * (self.files > 1)}"
        gib = self.payload_bytes / (1 << 30)
        return f"{gib:.2f} GiB of bf16 in {files}, {self.place}"

    def gib_per_s(self, name: str) -> float:
        """The median of one contestant."""
        return self.payload_bytes / (1 << 30) / self.timings[name].median_s

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "files": self.files,
            "place": self.place,
            "bytes": self.payload_bytes,
            "cores kept busy by others": self.others_cores,
            "timings": {name: timing.to_dict() for name, timing in self.timings.items()},
        }


def probe(contestants: Sequence[Contestant], case: Case) -> dict[str, str]:
    """Let each run once.

    Returns:
        the error of each that could not, by name.
    """
    failures = {}
    for contestant in contestants:
        try:
            prepare(contestant, case).run()
        except Exception as error:  # noqa: BLE001 - any error of a foreign library is its row
            failures[contestant.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return failures


def measure(
    contestants: Sequence[Contestant], case: Case, *, files: int, cache: Cache, rounds: int
) -> Result:
    """Check all of them against the first, then time them.

    Fast ones run in more rounds, since a few milliseconds decide between them.
    """
    others = Others()
    arms = [_from(cache, contestant) for contestant in contestants]
    timings = dict(measure_arms(arms, case, rounds=rounds).timings)
    brief = {
        arm.name: arm for arm in arms if not arm.is_slow and timings[arm.name].median_s < _BRIEF_S
    }
    more = time_rounds(
        {name: partial(_ready, arm, case) for name, arm in brief.items()},
        rounds=rounds * _MORE_ROUNDS,
    )
    for name, timing in more.items():
        timings[name] = Timing(seconds=timings[name].seconds + timing.seconds)
    return Result(
        files=files,
        place=f"page cache {cache}",
        payload_bytes=case.payload_bytes,
        timings=timings,
        others_cores=others.cores(),
    )


def bring(cache: Cache, case: Case) -> None:
    """Bring the files of a checkpoint into that state; raises what ``page_cache`` raises."""
    ensure = {Cache.WARM: ensure_warm, Cache.COLD: ensure_cold}[cache]
    ensure(files_below(case.folder))


def _ready(arm: Arm, case: Case) -> Callable[[], object]:
    return arm.prepare(case).run


def prepare(contestant: Contestant, case: Case) -> Prepared:
    """Make a contestant ready for a case, in the format that it reads."""
    return contestant.arm.prepare(in_format(case, contestant.file_format))


def _from(cache: Cache, contestant: Contestant) -> Arm:
    """The contestant's arm, whose files are in that state whenever it begins."""

    def ready(case: Case) -> Prepared:
        prepared = prepare(contestant, case)
        bring(cache, in_format(case, contestant.file_format))
        return prepared

    return Arm(name=contestant.name, prepare=ready, is_slow=contestant.arm.is_slow)
