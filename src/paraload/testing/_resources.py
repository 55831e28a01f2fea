"""Finds leaked descriptors, threads, processes and shared memory."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only listed
_SEGMENT: Final = "shared memory "


def resources() -> Counter[str]:
    """What this process holds, each resource as a line of text.

    These are open descriptors, threads, child processes, and all segments of shared memory of the
    machine: :func:`leaked` ignores those that other programs map.
    """
    held: Counter[str] = Counter()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            held[f"descriptor of {fd.readlink()}"] += 1
        except FileNotFoundError:
            continue  # the descriptor of this listing itself
    held.update(f"thread {thread.name}" for thread in threading.enumerate())
    held.update(f"process {pid}" for pid in _family())
    segments = (path for path in _SHARED_MEMORY.glob("*") if path.is_file())
    held.update(f"{_SEGMENT}{segment}" for segment in segments)
    return held


def _family() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _mapped_by(pids: Iterable[int]) -> set[int]:
    """The inodes of segments. A semaphore gets its name after it is mapped, so names differ."""
    found: set[int] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended, or belongs to another user
        lines = (line for line in maps.splitlines() if f"{_SHARED_MEMORY}/" in line)
        found.update(int(line.split(maxsplit=5)[4]) for line in lines)
    return found


def _acquired(before: Counter[str]) -> Counter[str]:
    found = resources() - before
    if new := [line for line in found if line.startswith(_SEGMENT)]:
        # Takes 20 ms with 100 processes, so only where there is a new segment.
        theirs = _mapped_by({*psutil.pids()} - _family() - {os.getpid()})
        for line in new:
            with suppress(FileNotFoundError):
                if Path(line.removeprefix(_SEGMENT)).stat().st_ino in theirs:
                    del found[line]
    return found


def leaked(before: Counter[str], *, grace_s: float = 10.0) -> list[str]:
    """What was acquired since ``before = resources()`` and not released within ``grace_s`` seconds.

    Only what every check finds counts: while another program exits, its shared memory is briefly
    not mapped by any process, as if it were ours.
    """
    left = _acquired(before)
    deadline = time.monotonic() + grace_s  # from now on, so that there is a second look
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left &= _acquired(before)
    return sorted(left)
