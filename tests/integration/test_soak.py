"""A short soak in the default suite; `make soak` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys

from tests import soak


def test_nothing_grows_in_fifteen_seconds():
    # In a process of its own: an interrupt between "open" and "with" of any library leaves a
    # file to the collector, which pytest would count as a failure of this test or of the next.
    ended = subprocess.run(
        [sys.executable, "-m", "tests.soak"],
        env=os.environ | {"SOAK_SECONDS": "15", "SOAK_SEED": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert "KeyboardInterrupt" in ended.stdout


def test_a_leak_would_be_seen():
    assert soak._growth([*range(100)]) > 40
    assert abs(soak._growth([5, 6] * 50)) < 1
