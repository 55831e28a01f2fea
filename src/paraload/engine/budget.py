"""Bytes in flight. Used by the engine on the caller's thread only, so it needs no lock."""


class MemoryBudget:
    """Admits reservations up to ``limit_bytes``, or a larger one while nothing else is held.

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
        """Reserve ``nbytes``; ``False`` if they do not fit now."""
        if self.held_bytes and self.held_bytes + nbytes > self.limit_bytes:
            return False
        self.held_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return True

    def release(self, nbytes: int) -> None:
        self.held_bytes -= nbytes
