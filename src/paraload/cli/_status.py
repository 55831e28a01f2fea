"""A status line that overwrites itself on a terminal, and writes nothing elsewhere."""

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
    """Use as a context manager: the line disappears at its end."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if is_terminal(stream) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")

    def show(self, text: str) -> None:
        """Replace the line by ``text``."""
        if self._stream is not None:
            # Cut: the clear sequence does not reach a second line.
            width = shutil.get_terminal_size().columns - 1
            try:
                self._stream.write(_CLEAR + printable(text)[:width])
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None  # the terminal is gone
