"""All rows."""

from __future__ import annotations

from tests.faults import content, described, system, targets

__all__ = ["BY_NAME", "CASES"]

CASES = [*content.CASES, *described.CASES, *targets.CASES, *system.CASES]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "names of rows are unique"
