"""Archives that are alike: what is known of one that was taken apart is known of all like it.

    archive --like a known one--> the same bytes, but for contents and sums; the sums are right
       |
       `--not yet known--> entry by entry (_verify_entries) --> known from now on

Of 50,000 small tensors nearly all have the same archive: only the payload, an identity that torch
makes of it, and the CRC-32s of these two are each record's own. What is not as expected here is
taken apart, which finds out and says why.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from paraload._checksum import crc32
from paraload._verify_entries import LOCAL_BYTES, LOCAL_NAMES

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterator

    from paraload._verify_entries import Directory

__all__ = ["Glance", "KnownArchives"]

_MAX_KNOWN: Final = 1024
#: Torch's are of 0.8 KiB.
_MAX_TAIL_BYTES: Final = 16 << 10
#: A header of the directory, but for name, extra and comment; and the lengths of these.
_CENTRAL_BYTES: Final = 46
_CENTRAL_NAMES: Final = struct.Struct("<28x3H")
_CRC_IN_CENTRAL: Final = 16
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_CRC_BYTES: Final = 4


class Glance(NamedTuple):
    """What is known of an archive but for its payload.

    Attributes:
        payload_crc: CRC-32 that the payload should have; 0 if it was written without.
        verified_bytes: of the other entries, compared with a CRC-32.
        unverifiable_bytes: of the other entries, that have none.
    """

    payload_crc: int
    verified_bytes: int
    unverifiable_bytes: int


class _Likeness(NamedTuple):
    """What archives of one head and one length have in common behind the payload.

    Attributes:
        tail: a group for each content, and for each CRC-32.
        sums: the groups of a content and of its two CRC-32s.
        payload: the groups of the payload's two.
        verified_bytes: of the entries but the payload.
    """

    tail: re.Pattern[bytes]
    sums: tuple[tuple[int, int, int], ...]
    payload: tuple[int, int]
    verified_bytes: int


class KnownArchives:
    """The archives that a run has taken apart. Threads share it: every step is a single look-up."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], _Likeness] = {}

    def glance(self, head: bytes, tail: bytes, nbytes: int) -> Glance | None:
        """What is known of an archive; ``None`` if it has to be taken apart.

        Args:
            head: what is before its payload.
            tail: what is behind it.
            nbytes: of all.
        """
        known = self._known.get((head, nbytes))
        if known is None or (found := known.tail.fullmatch(tail)) is None:
            return None
        texts = found.groups()
        for content, near, central in known.sums:
            crc = crc32(texts[content]).to_bytes(_CRC_BYTES, "little")
            if not crc == texts[near] == texts[central]:
                return None
        near, central = known.payload
        payload_crc = int.from_bytes(texts[near], "little")
        if not payload_crc or texts[near] != texts[central]:
            return None
        return Glance(payload_crc, known.verified_bytes, 0)

    def learn(self, head: bytes, tail: bytes, nbytes: int, directory: Directory) -> None:
        """An archive that was found to be right, entry by entry."""
        likeness = _likeness(tail, nbytes - len(tail), directory)
        if likeness is None:
            return
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[head, nbytes] = likeness


class _Own(NamedTuple):
    """What an entry has of its own in the tail, as ranges ``(start, end)`` of it."""

    content: tuple[int, int]
    near: tuple[int, int]  # the CRC-32 behind the content
    central: tuple[int, int]  # and in the directory


def _likeness(tail: bytes, tail_start: int, directory: Directory) -> _Likeness | None:
    """``None`` for an archive that is not as torch writes them, with checksums."""
    is_odd = len(tail) > _MAX_TAIL_BYTES or directory.start < tail_start
    if is_odd or directory.payload is None or directory.unverifiable_bytes:
        return None
    try:
        owns = dict(_owns(tail, tail_start, directory))
    except (struct.error, ValueError):
        return None
    spans = sorted(span for own in owns.values() for span in own)
    pattern, at = b"", 0
    for start, end in spans:
        if start < at:
            return None
        pattern += re.escape(tail[at:start]) + b"(.{%d})" % (end - start)
        at = end
    pattern += re.escape(tail[at:])
    groups = {
        info: (spans.index(own.content), spans.index(own.near), spans.index(own.central))
        for info, own in owns.items()
    }
    _, *payload = groups.pop(directory.payload)
    return _Likeness(
        tail=re.compile(pattern, re.DOTALL),
        sums=tuple(groups.values()),
        payload=(payload[0], payload[1]),
        verified_bytes=directory.verified_bytes,
    )


def _owns(
    tail: bytes, tail_start: int, directory: Directory
) -> Iterator[tuple[zipfile.ZipInfo, _Own]]:
    """The entries that have something of their own in the tail: the payload's is its CRC-32.

    Raises:
        ValueError: the archive is not as torch writes them.
        struct.error: likewise.
    """
    at = directory.start - tail_start
    for info in directory.entries:
        central = at + _CRC_IN_CENTRAL
        at += _CENTRAL_BYTES + sum(_CENTRAL_NAMES.unpack_from(tail, at))
        local = info.header_offset - tail_start
        if info is directory.payload:
            content = end = 0
        elif local >= 0:
            content = local + LOCAL_BYTES + sum(LOCAL_NAMES.unpack_from(tail, local))
            end = content + info.file_size
        else:
            continue  # in the head, which is compared as a whole
        near = tail.index(_DESCRIPTOR_SIGNATURE, end, end + len(_DESCRIPTOR_SIGNATURE))
        near += len(_DESCRIPTOR_SIGNATURE)
        yield (
            info,
            _Own((content, end), (near, near + _CRC_BYTES), (central, central + _CRC_BYTES)),
        )
