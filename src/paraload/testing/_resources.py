"""Finds leaked descriptors, threads, processes and shared memory."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only listed


def resources() -> Counter[str]:
    """What this process holds, each resource as a line of text.

    These are open descriptors, threads, child processes, and segments of shared memory that other
    programs do not map.
    """
    held: Counter[str] = Counter()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            held[f"descriptor of {fd.readlink()}"] += 1
        except FileNotFoundError:
            continue  # the descriptor of this listing itself
    held.update(f"thread {thread.name}" for thread in threading.enumerate())
    family = {child.pid for child in psutil.Process().children(recursive=True)}
    held.update(f"process {pid}" for pid in family)
    segments = {str(path) for path in _SHARED_MEMORY.glob("*") if path.is_file()}
    if segments:
        segments -= _mapped_by({*psutil.pids()} - family - {os.getpid()})
    held.update(f"shared memory {segment}" for segment in segments)
    return held


def _mapped_by(pids: Iterable[int]) -> set[str]:
    found: set[str] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended, or belongs to another user
        lines = (line for line in maps.splitlines() if f"{_SHARED_MEMORY}/" in line)
        found.update(line.split(maxsplit=5)[-1] for line in lines)
    return found


def leaked(before: Counter[str], *, grace_s: float = 10.0) -> list[str]:
    """What was acquired since ``before = resources()`` and not released within ``grace_s`` seconds.

    Only what every check finds counts: while another program exits, its shared memory is briefly
    not mapped by any process, as if it were ours.
    """
    deadline = time.monotonic() + grace_s
    left = resources() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left &= resources() - before
    return sorted(left)
