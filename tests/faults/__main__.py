"""``python -m tests.faults``: run the matrix, print it, or write it as ``docs/reliability.md``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.case import Outcome, judge
from tests.faults.document import document
from tests.faults.nth import SWEEPS, run_sweeps
from tests.faults.runner import ARMS, build_shim, run_cases
from tests.faults.table import CASES


def main() -> int:
    """Exit status 1 if paraload differs from a row's expectation."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="the document to write")
    parser.add_argument("--arms", default=",".join(ARMS), help="who loads, with commas")
    parser.add_argument("--only", default="", help="rows whose names have this in them")
    parser.add_argument("--texts", action="store_true", help="print the errors, too")
    quick = "executors but threads run only the rows where the executor matters"
    parser.add_argument("--quick", action="store_true", help=quick)
    given = parser.parse_args()
    command = " ".join(["python -m tests.faults", *sys.argv[1:]])
    cases = [case for case in CASES if given.only in case.name]

    def outcomes_of(arm: str, shim: Path) -> dict[str, Outcome]:
        whole = not given.quick or arm in {"torch", "threads"}
        suited = [case for case in cases if case.means_something_to(arm)]
        return run_cases(arm, [case for case in suited if whole or case.every], shim)

    arms = given.arms.split(",")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        shim = build_shim(Path(folder))
        futures = [pool.submit(outcomes_of, arm, shim) for arm in arms]
        outcomes = {arm: future.result() for arm, future in zip(arms, futures, strict=True)}
        all_n = {
            arm: pool.submit(run_sweeps, arm, SWEEPS, shim)
            for arm in arms
            if arm != "torch" and not given.only
        }
        swept = {arm: future.result() for arm, future in all_n.items()}
    if given.write is not None:
        page = document(cases, outcomes, swept, command)
        given.write.write_text(page, encoding="utf-8")
    red = 0
    for arm, by_name in swept.items():
        for name, it in by_name.items():
            print(f"{name} [{arm}]: {it}")
            if it.problems:
                red += 1
                print(f"RED {name} [{arm}]: " + "\n    ".join(it.problems))
    for case in cases:
        for arm, by_name in outcomes.items():
            outcome = by_name.get(case.name)
            if outcome is None:
                continue
            if given.texts:
                print(f"{case.name} [{arm}]: {outcome.verdict} {outcome}\n    {outcome.text}")
            if arm == "torch":
                continue
            if problems := judge(case, outcome):
                red += 1
                print(f"RED {case.name} [{arm}]: " + "\n    ".join(problems))
    print(f"{len(cases)} rows, {red} of them not as they should be", file=sys.stderr)
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
