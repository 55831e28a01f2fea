"""A line on a terminal that is written over again and again; nothing where nobody looks."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Self

from paraload._text import printable
from paraload.progress import is_terminal

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["StatusLine"]

_CLEAR = "\r\x1b[K"


class StatusLine:
    """Use as a context manager: the line is gone at its end."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if is_terminal(stream) else None

    def __enter__(self) -> Self:
        """The line appears with its first text."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self.show("")

    def show(self, text: str) -> None:
        """Write ``text`` in the place of the last one."""
        if self._stream is not None:
            # A line that is too long goes over to the next one, where nothing would clear it.
            width = shutil.get_terminal_size().columns - 1
            try:
                self._stream.write(_CLEAR + printable(text)[:width])
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None  # the terminal is gone
