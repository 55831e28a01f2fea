"""Nothing may outlive a load: every test is checked for descriptors, threads, children, memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _warm():
    """What torch opens once and keeps is not a leak of the test that meets it first."""
    torch.rand(8, 8) @ torch.rand(8, 8)


def held():
    """What this process holds, apart from ordinary memory: every thing as a line of text."""
    lines = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            lines.append(f"descriptor of {fd.readlink()}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    lines += [f"thread {thread.name}" for thread in threading.enumerate()]
    lines += [f"process {child.pid}" for child in psutil.Process().children(recursive=True)]
    if (shm := Path("/dev/shm")).is_dir():
        lines += [f"shared memory {segment}" for segment in shm.iterdir()]
    return Counter(lines)


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = held()
    yield
    # Shared memory is the whole machine's: what other programs have there goes away by itself.
    deadline = time.monotonic() + 10
    while (left := held() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(left) == []
