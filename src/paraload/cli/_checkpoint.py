"""The checkpoint of a command, and the memory to load it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from paraload.cli._arguments import UsageError
from paraload.report import format_bytes
from paraload.runtime.resources import available_memory_bytes

if TYPE_CHECKING:
    from paraload.adapters.dcp.reader_choice import Reader
    from paraload.options import ReadOptions


def open_reader(arguments: argparse.Namespace, options: ReadOptions | None = None) -> Reader:
    from paraload.adapters.dcp.reader_choice import reader_for  # noqa: PLC0415 - imports torch

    return reader_for(arguments.path, options=options, **dict(getattr(arguments, "storage", ())))


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse a load that the system would kill halfway.

    Raises:
        UsageError: there is not enough free memory.
    """
    if needed_bytes > (free_bytes := available_memory_bytes()):
        needed, free = format_bytes(needed_bytes), format_bytes(free_bytes)
        raise UsageError(f"{what} takes {needed} of memory, and {free} are free here")
