"""Record formats: each is one class that implements ``ItemFormat``, without I/O.

A format gets the first bytes of a record and returns a :class:`TensorRecord`, or :class:`NeedBytes`
(more bytes are needed), or :class:`Unsupported` (left to ``torch.load``). It never raises for
unexpected bytes: a damaged record is Unsupported, and the fallback, which reads the whole record,
reports the error. :class:`~paraload.testing.FormatContract` is the suite that every format
passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from paraload.core.records import TensorRecord

__all__ = ["ItemFormat", "NeedBytes", "TensorRecord", "Unsupported", "locate"]


@dataclass(frozen=True, slots=True)
class NeedBytes:
    """Call again with the first ``nbytes`` of the record."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Not a plain tensor in this format; the report counts each ``reason``."""

    reason: str


class ItemFormat(Protocol):
    """Finds payloads in records of one format.

    A format must pickle, for worker processes, and may be shared by threads.

    Attributes:
        first_bytes: length of the head that :meth:`locate` gets first.
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
        """The CRC-32 in the bytes after a payload; 0 if none was written, ``None`` if damaged."""


def locate(
    fmt: ItemFormat, read_head: Callable[[int], bytes], record_bytes: int, least_bytes: int = 0
) -> TensorRecord | Unsupported:
    """Pass ``fmt`` the beginning of a record, and more of it as long as it asks for more.

    Args:
        fmt: the format.
        read_head: returns the first bytes of the record, as many as its argument says.
        record_bytes: length of the whole record.
        least_bytes: minimum length of the first head; fewer bytes would take as long to read.
    """
    want = min(max(fmt.first_bytes, least_bytes), record_bytes)
    while isinstance(found := fmt.locate(read_head(want), record_bytes), NeedBytes):
        want = found.nbytes
    return found
