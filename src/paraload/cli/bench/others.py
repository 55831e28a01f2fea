"""What other programs take of the processors while something is measured here."""

import os
from contextlib import suppress

import psutil


class Others:
    """Cores that other programs keep busy, from when this is made.

    Threads that wait for each other suffer most from them: torch's copies can take ten times as
    long with one core taken.
    """

    def __init__(self) -> None:
        self._began = self._now()

    def cores(self) -> float:
        """Cores that others kept busy since the beginning, on average."""
        (began_s, began_busy_s), (now_s, busy_s) = self._began, self._now()
        return max(0.0, (busy_s - began_busy_s) / (now_s - began_s))

    @staticmethod
    def _now() -> tuple[float, float]:
        machine, own = psutil.cpu_times(), os.times()
        # Guests are counted as user time, too.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        busy_s = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - guests
        own_s = sum(own[:4])  # with the child processes that have ended
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                own_s += sum(child.cpu_times()[:2])
        return own.elapsed, busy_s - own_s
