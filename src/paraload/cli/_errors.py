"""What can be wrong with a call."""

from __future__ import annotations


class UsageError(Exception):
    """The call cannot be right: no such folder, a file that cannot be written."""
