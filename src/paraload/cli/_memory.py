"""Whether there is enough memory for a command."""

from __future__ import annotations

from paraload.cli._errors import UsageError
from paraload.report import format_bytes
from paraload.runtime.resources import available_memory_bytes


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse work that the system would kill half way."""
    if needed_bytes > (free_bytes := available_memory_bytes()):
        needed, free = format_bytes(needed_bytes), format_bytes(free_bytes)
        raise UsageError(f"{what} takes {needed} of memory, and {free} are free here")
