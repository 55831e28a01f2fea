"""CRC-32 as zip uses it.

``zlib_ng`` is several times faster than the standard library's zlib and has ``crc32_combine``.
"""

from collections.abc import Iterable

from zlib_ng.zlib_ng import crc32, crc32_combine

__all__ = ["combined", "crc32"]


def combined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of a whole from ``(crc, nbytes)`` of each of its parts, in order.

    >>> combined([(crc32(b"check"), 5), (crc32(b"point"), 5)]) == crc32(b"checkpoint")
    True
    """
    whole = 0
    for crc, nbytes in parts:
        whole = crc32_combine(whole, crc, nbytes)
    return whole
