"""``python -m tests.torch_versions``: how the suite ended with each torch, from ``results``.

With ``--write``, the tables go to ``docs/torch-versions.md`` and to the README in both languages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.page import Place
from tests.torch_versions.record import RESULTS

REPOSITORY = Path(__file__).parents[2]
PAGES = ("README.md", "README.zh-CN.md")
PLACE = Place("torch-versions", "make torch-versions")
NEEDS = "needs torch "


def results() -> list[dict[str, Any]]:
    """Of all versions, the oldest first."""
    read = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(read, key=lambda result: [int(part) for part in result["torch"].split(".")])


def table(rows: list[list[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def summary(found: list[dict[str, Any]]) -> str:
    """One row for each version."""
    rows: list[list[object]] = [["torch", "Python", "passed", "failed", "skipped"]]
    rows += [
        [one["torch"], one["python"], one["passed"], one["failures"], sum(one["skipped"].values())]
        for one in found
    ]
    return table(rows)


def reasons(found: list[dict[str, Any]]) -> str:
    """Tests that torch is too old for, by reason, and all others that are skipped."""
    of_torch = sorted({it for one in found for it in one["skipped"] if it.startswith(NEEDS)})
    rows: list[list[object]] = [["skipped because", *(one["torch"] for one in found)]]
    rows += [[reason, *(one["skipped"].get(reason, 0) for one in found)] for reason in of_torch]
    others = [
        sum(count for reason, count in one["skipped"].items() if reason not in of_torch)
        for one in found
    ]
    rows.append(["the machine lacks something", *others])
    return table(rows)


def main() -> None:
    found = results()
    failed = [f"- torch {one['torch']}: `{name}`" for one in found for name in one["failed"]] or [
        "None failed."
    ]
    text = "\n\n".join([summary(found), "\n".join(failed), reasons(found)])
    print(text)
    if sys.argv[1:] == ["--write"]:
        PLACE.rewrite(REPOSITORY / "docs" / "torch-versions.md", text)
        for page in PAGES:
            PLACE.rewrite(REPOSITORY / page, summary(found))


if __name__ == "__main__":
    main()
