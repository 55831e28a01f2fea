"""A row of the matrix: how a checkpoint is damaged, and how a load of it has to end."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.scene import Scene

__all__ = ["Case", "Expect", "Outcome", "fails", "in_time", "judge", "loads", "or_loads", "raises"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """How a load may end.

    Attributes:
        loads: with the right bytes.
        kinds: with a ``CheckpointReadError`` that is, or lists, an error of one of these classes.
        untouched: the error comes before anything is written into a target.
        own: with this exception of the user's, unchanged.
        report: what the load's report has to count.
    """

    loads: bool = False
    kinds: tuple[str, ...] = ()
    untouched: bool = False
    own: str = ""
    report: str = ""

    def __str__(self) -> str:
        ends = ["right bytes"] if self.loads else []
        ends += [" or ".join(self.kinds)] if self.kinds else []
        ends += [f"`{self.own}`, unchanged"] if self.own else []
        text = " or ".join(ends)
        text += ", targets untouched" if self.untouched else ""
        return text + (f", counted in `{self.report}`" if self.report else "")


def loads(report: str = "") -> Expect:
    return Expect(loads=True, report=report)


def fails(*kinds: str) -> Expect:
    """Fails at any time, with an error of one of these classes."""
    return Expect(kinds=kinds)


def in_time(*kinds: str) -> Expect:
    """Fails with one of these before any target is touched."""
    return Expect(kinds=kinds, untouched=True)


def or_loads(*kinds: str) -> Expect:
    """Right bytes, or one of these; ``CheckpointReadError`` stands for all of paraload's."""
    return Expect(loads=True, kinds=kinds or ("CheckpointReadError",))


def raises(own: str) -> Expect:
    return Expect(own=own)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row.

    Attributes:
        group: of rows.
        name: of the row; unique.
        arrange: damages the scene.
        expect: how a load has to end.
        sample: of the checkpoint.
        executors: for which it means anything; empty for all of them.
        every: the executor matters, so the suite runs it with each.
        tells: words that the text must have, besides those that ``arrange`` adds.
    """

    group: str
    name: str
    arrange: Callable[[Scene], Any]
    expect: Expect
    sample: str = "plain"
    executors: tuple[str, ...] = ()
    every: bool = False
    tells: tuple[str, ...] = ()

    def means_something_to(self, arm: str) -> bool:
        """Whether the case applies to ``arm``."""
        return not self.executors or arm in self.executors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a load ended."""

    case: str
    #: right, wrong, typed, own, error, hang, crash, n/a
    verdict: str
    kinds: tuple[str, ...] = ()
    text: str = ""
    untouched: bool = False
    missing_words: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    executed: bool = False
    seconds: float = 0.0
    grown_mib: float = 0.0
    report: tuple[str, ...] = ()
    #: The fault of the shim, or of the source, came about.
    met: bool = False

    def __str__(self) -> str:
        """For the cell of a table."""
        if self.executed:
            return "**code ran**"
        words = {
            "right": "right bytes",
            "wrong": "**wrong bytes, no error**",
            "hang": "**hangs**",
            "crash": "**process dies**",
        }
        text = words.get(self.verdict, " + ".join(self.kinds) or self.verdict)
        if self.verdict == "error" and self.missing_words:
            text += ", does not say where"
        return text + (", leaks" if self.leaks else "")


#: A fault may not cost much more memory than the checkpoint, which has 3 MiB.
MOST_GROWN_MIB = 300


def judge(case: Case, outcome: Outcome) -> list[str]:
    """What differs from the row's expectation."""
    expect, wrong = case.expect, []
    if outcome.verdict == "n/a":
        return []
    ended_well = (
        (outcome.verdict == "right" and expect.loads)
        or (outcome.verdict == "own" and expect.own in outcome.kinds)
        or (
            outcome.verdict == "typed"
            and any(
                kind in {*expect.kinds} or "CheckpointReadError" in expect.kinds
                for kind in outcome.kinds
            )
        )
    )
    if not ended_well:
        wrong.append(f"wanted {expect}, got {outcome.verdict} {outcome.kinds}")
    if outcome.verdict == "typed" and outcome.missing_words:
        wrong.append(f"the text does not have {outcome.missing_words}")
    if outcome.verdict == "typed" and expect.untouched and not outcome.untouched:
        wrong.append("targets were written to")
    if outcome.verdict == "right" and expect.report and expect.report not in outcome.report:
        wrong.append(f"the report does not count {expect.report}")
    wrong += [f"left behind: {leak}" for leak in outcome.leaks]
    wrong += ["code of the checkpoint ran"] if outcome.executed and not expect.loads else []
    if outcome.grown_mib > MOST_GROWN_MIB:
        wrong.append(f"memory grew by {outcome.grown_mib:.0f} MiB")
    return [*wrong, outcome.text[:2000]] if wrong else []
