"""Checks whole zip archives in memory, for records that are not located. PURE.

Objects, and tensors that only torch can read, are ``torch.save`` archives too. zipfile finds their
entries by the central directory, and compares each with its CRC-32.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Final

from paraload.errors import DAMAGED_HINT, ChecksumMismatchError, FormatError, ItemReadError

if TYPE_CHECKING:
    import zipfile

_PIECE_BYTES: Final = 1 << 20


def check_archive(data: memoryview, limit_bytes: int, *, verify: bool) -> int:
    """Check the CRC-32 of every entry of an archive.

    Args:
        data: the archive.
        limit_bytes: upper bound of the size of all entries, which some writers compress.
        verify: compare checksums; ``False`` checks the size alone.

    Returns:
        The number of bytes that were verified; 0 if this is not a zip archive.
    """
    import zipfile  # noqa: PLC0415 - 10 ms, which a worker that reads only tensors can save

    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        return 0
    with archive:
        entries = archive.infolist()
        if (nbytes := sum(info.file_size for info in entries)) > limit_bytes:
            raise FormatError(
                "a record inflates to more than it can be",
                expected=f"at most {limit_bytes} bytes",
                got=f"entries of {nbytes} bytes",
                hint=DAMAGED_HINT,
            )
        # A CRC of 0 means that the entry is empty, or was written without checksums.
        checked = [info for info in entries if verify and info.CRC]
        return sum(check_entry(archive, info) for info in checked)


def check_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Compare an entry with its CRC-32, in pieces; return its size in bytes."""
    try:
        with archive.open(info) as entry:
            while entry.read(_PIECE_BYTES):  # zipfile compares the CRC-32 at the end
                pass
    except ItemReadError:
        raise  # of the file that the archive reads from
    except Exception as error:  # BadZipFile, zlib.error: a damaged entry can raise anything
        raise ChecksumMismatchError(
            f"entry {info.filename!r} of the record is damaged",
            expected=f"CRC-32 {info.CRC:08x}",
            got=str(error),
            hint=DAMAGED_HINT,
        ) from error
    return info.file_size
