"""ItemFormat: where a payload lies, told from bytes alone. No I/O, no torch.

A format gets the first bytes of a record and answers with a :class:`TensorRecord`, with
:class:`NeedBytes` (show me more), or with :class:`Unsupported` (this is for torch.load). It never
raises for strange bytes: damage that it meets makes the record Unsupported, and the fallback, which
reads everything, has the last word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from paraload.core.records import TensorRecord

NATIVE_BYTEORDER: Final = sys.byteorder


@dataclass(frozen=True, slots=True)
class NeedBytes:
    """Ask again with the first ``nbytes`` of the record."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Not a plain tensor in this format; ``reason`` is counted in the report."""

    reason: str


class ItemFormat(Protocol):
    """Finds payloads in records of one format.

    Attributes:
        first_bytes: bytes of a record that :meth:`locate` is shown first.
        has_checksum: whether the format has a CRC-32 of the payload.
    """

    first_bytes: int
    has_checksum: bool

    def locate(self, head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
        """Find the payload.

        Args:
            head: the first bytes of the record, at most ``record_bytes``.
            record_bytes: length of the whole record.
        """

    def read_trailer(self, trailer: bytes | memoryview, payload_bytes: int) -> int | None:
        """The CRC-32 in the bytes behind a payload; 0 if none was written, None if damaged."""


def locate(
    fmt: ItemFormat, read_head: Callable[[int], bytes], record_bytes: int, least_bytes: int = 0
) -> TensorRecord | Unsupported:
    """Show ``fmt`` the first bytes of a record, which ``read_head`` reads, until it knows.

    ``least_bytes`` are as cheap to read from the storage as fewer.
    """
    want = min(max(fmt.first_bytes, least_bytes), record_bytes)
    while isinstance(found := fmt.locate(read_head(want), record_bytes), NeedBytes):
        want = found.nbytes
    return found
