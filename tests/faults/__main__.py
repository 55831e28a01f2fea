"""``python -m tests.faults``: run the matrix, print it, or write it as ``docs/reliability.md``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.case import judge
from tests.faults.document import document
from tests.faults.runner import ARMS, build_shim, run_cases
from tests.faults.table import CASES


def main() -> int:
    """Exit status 1 if a row is not as it should be for paraload."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="the document to write")
    parser.add_argument("--arms", default=",".join(ARMS), help="who loads, with commas")
    parser.add_argument("--only", default="", help="rows whose names have this in them")
    parser.add_argument("--texts", action="store_true", help="print the errors, too")
    given = parser.parse_args()
    cases = [case for case in CASES if given.only in case.name]
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        shim = build_shim(Path(folder))
        for arm in given.arms.split(","):
            suited = [
                case for case in cases if not case.executors or arm in (*case.executors, "torch")
            ]
            print(f"{arm}: {len(suited)} cases", file=sys.stderr)
            outcomes[arm] = run_cases(arm, suited, shim)
    if given.write is not None:
        given.write.write_text(document(cases, outcomes), encoding="utf-8")
    red = 0
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
