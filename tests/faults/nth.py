"""The N-th call fails, for N = 1, 2, 3 and on, until a load does not come to it any more.

As in SQLite's tests: for every N the load ends with the right bytes or a typed error, and nothing
is left behind. A worker process counts its own calls.
"""

from __future__ import annotations

import dataclasses
import errno
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from paraload.testing import FaultySource
from tests.faults.case import Case, judge, or_loads
from tests.faults.runner import run_cases
from tests.faults.system import ALWAYS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.faults.scene import Scene

__all__ = ["SWEEPS", "Swept", "named", "run_sweeps"]

#: So many at a time, each batch in a child process.
STEP = 8
MOST = 400


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One kind of call that fails.

    Attributes:
        call: of the shim; "source" is a read of an injected source, "damage" one that flips a bit.
        is_lasting: all calls from the N-th on fail, not this one alone.
    """

    call: str
    is_lasting: bool

    @property
    def name(self) -> str:
        return f"{self.call} {'always' if self.is_lasting else 'once'}"

    def case(self, n: int) -> Case:
        """The row for one N."""
        return Case(
            group="N-th call",
            name=f"N = {n}, {self.name}",
            arrange=lambda scene: self._arrange(scene, n),
            expect=or_loads(),
        )

    def _arrange(self, scene: Scene, n: int) -> None:
        times = ALWAYS if self.is_lasting else 1
        scene.options["retries"] = 1
        if self.call in {"source", "damage"}:
            error = OSError(errno.EIO, "on purpose") if self.call == "source" else None
            scene.source = lambda inner: _Logging(
                inner, fail_at=n, times=times, error=error, log=scene.met
            )
        else:
            scene.shim = f"{self.call}:{n}:{errno.EIO}:{times}:0"


class _Logging(FaultySource):
    """Creates a file if it failed, in any process."""

    def __init__(self, inner: Any, *, log: Path, **faults: Any) -> None:
        super().__init__(inner, **faults)
        self.log = log
        self.faults = faults

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(_Logging, log=self.log, **self.faults), (self.inner,)

    def _is_turn(self) -> bool:
        is_turn = super()._is_turn()
        if is_turn:
            self.log.touch()
        return is_turn


CALLS = ("open", "read", "stat", "close", "source", "damage")
SWEEPS = [Sweep(call=call, is_lasting=lasting) for call in CALLS for lasting in (False, True)]


def named(name: str) -> Case:
    """The row with this name."""
    [n, sweep] = name.removeprefix("N = ").split(", ")
    return next(it for it in SWEEPS if it.name == sweep).case(int(n))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """The outcomes for all N."""

    verdicts: Counter[str]
    problems: list[str]

    def __str__(self) -> str:
        """For the cell of a table."""
        words = {"right": "right bytes", "typed": "typed error"}
        parts = [f"{count} {words.get(v, v)}" for v, count in sorted(self.verdicts.items())]
        return f"N to {self.verdicts.total()}: {', '.join(parts)}"


def run_sweeps(arm: str, sweeps: Sequence[Sweep], shim: Path) -> dict[str, Swept]:
    """All N of each, with ``arm``; outcomes by the names of the sweeps."""
    swept = {sweep.name: Swept(verdicts=Counter(), problems=[]) for sweep in sweeps}
    left, first = list(sweeps), 1
    while left:
        numbers = range(first, first + STEP)
        cases = {sweep.name: [sweep.case(n) for n in numbers] for sweep in left}
        outcomes = run_cases(arm, [case for of in cases.values() for case in of], shim)
        for name, of in cases.items():
            for case in of:
                outcome = outcomes[case.name]
                swept[name].problems.extend(f"{case.name}: {it}" for it in judge(case, outcome))
                if outcome.verdict == "right" and not outcome.met:
                    left = [sweep for sweep in left if sweep.name != name]
                    break
                swept[name].verdicts[outcome.verdict] += 1
        first += STEP
        if first > MOST:
            raise RuntimeError(f"a load of the sample still calls after {first} calls: {left}")
    return swept
