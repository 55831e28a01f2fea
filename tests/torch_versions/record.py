"""A plugin of pytest that writes how the suite ended to ``results/VERSION.json``."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

__all__ = ["RESULTS"]

RESULTS = Path(__file__).parent / "results"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    stats = terminalreporter.stats
    if config.option.collectonly:
        return
    reasons = Counter(_reason(report) for report in stats.get("skipped", []))
    failed = [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])]
    version = torch.__version__.partition("+")[0]
    result = {
        "torch": version,
        "python": platform.python_version(),
        "passed": len(stats.get("passed", [])),
        "failed": sorted({node.partition("[")[0] for node in failed}),
        "failures": len(failed),
        "skipped": dict(sorted(reasons.items())),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{version}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    terminalreporter.write_line(f"wrote {path}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped, without what differs from test to test."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return re.sub(r"^Skipped: ", "", text)
