"""Every row with threads, those of the system with every executor; `make reliability` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.case import judge
from tests.faults.document import rows_of
from tests.faults.nth import SWEEPS, run_sweeps
from tests.faults.runner import ARMS, ShimError, build_shim, run_cases
from tests.faults.table import CASES
from tests.old_torch import EXTENSIONS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
RUN = [
    (arm, case)
    for arm in ARMS
    if arm != "torch"
    for case in CASES
    if (arm == "threads" or case.every) and (not case.executors or arm in case.executors)
]

THREADS = [case for arm, case in RUN if arm == "threads"]


#: `make reliability` runs the others; processes take a second to start, for each N.
SWEPT_ARMS = ("threads",)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that makes calls fail."""
    try:
        return build_shim(tmp_path_factory.mktemp("shim"))
    except ShimError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def outcomes(shim):
    """All of them, by arm and name: a child process for each arm, on first use."""
    known = {}

    def of(arm, case):
        if arm not in known:
            cases = [c for a, c in RUN if a == arm and (EXTENSIONS.is_here or c.sample != "zstd")]
            known[arm] = run_cases(arm, cases, shim)
        return known[arm][case.name]

    return of


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("arm", "case"), RUN, ids=[f"{arm}-{case.name}" for arm, case in RUN])
def test_a_load_ends_as_the_row_wants_it(outcomes, arm, case):
    if case.sample == "zstd":
        EXTENSIONS.require()
    assert judge(case, outcomes(arm, case)) == []


@pytest.fixture(scope="module")
def swept(shim):
    """The outcomes of the N-th calls, by arm."""
    return {arm: run_sweeps(arm, SWEEPS, shim) for arm in SWEPT_ARMS}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("arm", SWEPT_ARMS)
@pytest.mark.parametrize("sweep", SWEEPS, ids=[sweep.name for sweep in SWEEPS])
def test_the_nth_call_fails(swept, arm, sweep):
    found = swept[arm][sweep.name]
    assert found.problems == []
    assert found.verdicts.total() >= 2
    # Nothing is lost where files that were read cannot be closed.
    fails = (sweep.is_lasting and sweep.call != "close") or sweep.call == "damage"
    assert (found.verdicts["typed"] > 0) == fails


def test_the_page_has_every_row():
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert [name for name in rows if name != "case"] == [case.name for case in CASES]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", THREADS, ids=[case.name for case in THREADS])
def test_the_page_agrees_with_the_outcomes(outcomes, case):
    if case.sample == "zstd":
        EXTENSIONS.require()
    cells = rows_of(PAGE.read_text(encoding="utf-8"))[case.name]
    assert cells[0] == str(case.expect)
    expected, got = cells[1 + ARMS.index("threads")], str(outcomes("threads", case))
    # How far a load was when its files were changed is chance, and so is which check finds it.
    assert expected == got or {expected, got} <= set(str(case.expect).split(" or "))
