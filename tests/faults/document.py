"""The matrix as a page of the documentation, and back."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from tests.faults.nth import SWEEPS
from tests.faults.runner import ARMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.faults.case import Case, Outcome
    from tests.faults.nth import Swept

__all__ = ["document", "rows_of"]

_HEAD = """# What a reader survives

`{command}` wrote this page: {count} faults, each in a checkpoint of its own, loaded by torch
{torch}'s `FileSystemReader` and by paraload with each executor, in child processes that are
checked afterwards for leaked descriptors, threads, processes and shared memory. The rows are the
table of `tests/faults/`; the test suite checks that paraload still does what is written here.

| | torch | {arms} |
|---|---|{rules}|
{sums}

An error's name alone stands for a `CheckpointReadError` that lists such errors, with the tensor,
the file and the bytes in its text. "does not say where" means that they are missing. A dash: the
case does not apply to this reader. If only some rows of a record are read, its checksum cannot be
compared: such items are loaded and counted as not verified.
"""

_NTH = """
## The N-th call fails

For N = 1, 2, 3 and so on, until a load makes fewer than N calls: the call fails once, or always
from then on. "source" is a byte source that raises, "damage" one that flips a bit. Each process
counts its own calls.

"""

_SUMS = {
    "right": "right bytes",
    "wrong": "wrong bytes, no error",
    "typed": "an error that names the place",
    "own": "the user's own error, unchanged",
    "error": "another error",
    "hang": "hangs",
    "crash": "the process dies",
    "executed": "code of the checkpoint ran",
}


def document(
    cases: Sequence[Case],
    outcomes: Mapping[str, Mapping[str, Outcome]],
    swept: Mapping[str, Mapping[str, Swept]],
    command: str,
) -> str:
    """The whole page."""
    import torch

    ours = [arm for arm in ARMS if arm != "torch"]
    sums = [
        _line([text, *[str(_count(outcomes.get(arm, {}), key)) for arm in ARMS]])
        for key, text in _SUMS.items()
    ]
    page = _HEAD.format(
        count=len(cases),
        command=command,
        torch=torch.__version__.split("+")[0],
        arms=" | ".join(ours),
        rules="|".join(["---"] * len(ours)),
        sums="\n".join(sums),
    )
    for group, rows in groupby(cases, key=lambda case: case.group):
        page += f"\n## {group[0].upper()}{group[1:]}\n\n"
        page += _line(["case", "expected", *ARMS]) + "\n" + "|---" * (2 + len(ARMS)) + "|\n"
        for case in rows:
            cells = [_cell(case, arm, outcomes.get(arm, {}).get(case.name)) for arm in ARMS]
            page += _line([case.name, str(case.expect), *cells]) + "\n"
    page += _NTH + _line(["call", *ours]) + "\n" + "|---" * (1 + len(ours)) + "|\n"
    for sweep in SWEEPS:
        cells = [str(swept[arm][sweep.name]) if arm in swept else "not run" for arm in ours]
        page += _line([sweep.name, *cells]) + "\n"
    return page


def rows_of(page: str) -> dict[str, list[str]]:
    """The cells of each row, by its name."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    return {cells[0]: cells[1:] for cells in rows if len(cells) == 2 + len(ARMS)}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(case: Case, arm: str, outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run" if case.means_something_to(arm) else "-"
    return "-" if outcome.verdict == "n/a" else str(outcome)


def _count(outcomes: Mapping[str, Outcome], key: str) -> int:
    if key == "executed":
        return sum(outcome.executed for outcome in outcomes.values())
    return sum(o.verdict == key and not o.executed for o in outcomes.values())
