"""Every row with threads, those of the system with every executor; `make reliability` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.case import judge
from tests.faults.document import rows_of
from tests.faults.runner import ARMS, ShimError, build_shim, run_cases
from tests.faults.system import NTH
from tests.faults.table import CASES

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
RUN = [
    (arm, case)
    for arm in ARMS
    if arm != "torch"
    for case in CASES
    if (arm == "threads" or case.every) and (not case.executors or arm in case.executors)
]

THREADS = [case for arm, case in RUN if arm == "threads"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All of them, by arm and name: a child process for each arm, on first use."""
    try:
        shim = build_shim(tmp_path_factory.mktemp("shim"))
    except ShimError as error:
        pytest.fail(str(error))
    known = {}

    def of(arm, case):
        if arm not in known:
            cases = [c for a, c in RUN if a == arm] + (NTH if arm == "threads" else [])
            known[arm] = run_cases(arm, cases, shim)
        return known[arm][case.name]

    return of


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("arm", "case"), RUN, ids=[f"{arm}-{case.name}" for arm, case in RUN])
def test_a_load_ends_as_the_row_wants_it(outcomes, arm, case):
    assert judge(case, outcomes(arm, case)) == []


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", NTH, ids=[case.name for case in NTH])
def test_the_nth_call_fails(outcomes, case):
    """As SQLite does it, for N = 1, 2, 3 and on."""
    assert judge(case, outcomes("threads", case)) == []


def test_the_page_has_every_row():
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert [name for name in rows if name != "case"] == [case.name for case in CASES]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", THREADS, ids=[case.name for case in THREADS])
def test_the_page_tells_what_happens(outcomes, case):
    cells = rows_of(PAGE.read_text(encoding="utf-8"))[case.name]
    assert cells[0] == str(case.expect)
    assert cells[1 + ARMS.index("threads")] == str(outcomes("threads", case))
