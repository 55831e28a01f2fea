"""Bytes in flight. Arithmetic only: the engine asks, on the caller's thread, and nobody else."""

from __future__ import annotations

__all__ = ["MemoryBudget"]


class MemoryBudget:
    """Admits reservations up to ``limit_bytes``; a larger single one only when nothing is held.

    >>> budget = MemoryBudget(10)
    >>> budget.reserve(7), budget.reserve(4)
    (True, False)
    >>> budget.release(7)
    >>> budget.reserve(99)
    True
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.peak_bytes = 0

    def reserve(self, nbytes: int) -> bool:
        """Hold ``nbytes`` if they fit, or if nothing is held: one oversize item goes alone."""
        if self.held_bytes and self.held_bytes + nbytes > self.limit_bytes:
            return False
        self.held_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return True

    def release(self, nbytes: int) -> None:
        """Give back what was reserved."""
        self.held_bytes -= nbytes
