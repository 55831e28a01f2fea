"""CRC-32 as zip uses it: of one piece, and of two pieces from their own.

``zlib_ng`` is several times faster than the standard library's and drops the GIL. It is not
imported before the first check, which keeps ``import paraload`` light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

try:
    from zlib_ng.zlib_ng import crc32, crc32_combine
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError("paraload needs zlib-ng: pip install zlib-ng") from error

__all__ = ["combined", "crc32"]


def combined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of a whole from ``(crc, nbytes)`` of its pieces, in order.

    >>> combined([(crc32(b"check"), 5), (crc32(b"point"), 5)]) == crc32(b"checkpoint")
    True
    """
    whole = 0
    for crc, nbytes in parts:
        whole = crc32_combine(whole, crc, nbytes)
    return whole
