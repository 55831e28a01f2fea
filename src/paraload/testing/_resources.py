"""What a piece of work holds, and what it has left behind."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["leaked", "resources"]


def resources() -> Counter[str]:
    """What this process holds apart from ordinary memory, every thing as a line of text.

    Open descriptors, threads, processes below this one, and the machine's shared memory, as far as
    no other program has it.
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
    # None where there is no such folder; a folder in it is somebody's scratch space.
    segments = {str(path) for path in _SHARED_MEMORY.glob("*") if path.is_file()}
    if segments:
        family.add(os.getpid())
        segments -= _mapped_by(pid for pid in psutil.pids() if pid not in family)
    held.update(f"shared memory {segment}" for segment in segments)
    return held


_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only listed


def _mapped_by(pids: Iterable[int]) -> set[str]:
    """The segments of shared memory that these processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended, or is somebody else's
        lines = (line for line in maps.splitlines() if f"{_SHARED_MEMORY}/" in line)
        found.update(line.split(maxsplit=5)[-1] for line in lines)
    return found


def leaked(before: Counter[str], *, grace_s: float = 10.0) -> list[str]:
    """What is there since ``before = resources()``, and does not go away in ``grace_s`` seconds.

    Other programs use the machine's shared memory too: one that ends while it is looked at has some
    that nobody seems to have. So what is left is what every look has found.
    """
    deadline = time.monotonic() + grace_s
    left = resources() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left &= resources() - before
    return sorted(left)
