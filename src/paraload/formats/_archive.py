"""The checksums of a whole zip archive in memory, for records that are not located. PURE.

Bytes items and tensors that only torch can read are ``torch.save`` archives too; zipfile finds
their entries by the central directory, and compares each with its CRC-32.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Final

from paraload.errors import DAMAGED_HINT, ChecksumMismatchError, FormatError, ItemReadError

if TYPE_CHECKING:
    import zipfile

__all__ = ["check_archive", "check_entry"]

_PIECE_BYTES: Final = 1 << 20


def check_archive(data: memoryview, limit_bytes: int, *, verify: bool) -> int:
    """Check the CRC-32 of every entry of a whole archive in memory.

    Args:
        data: the archive.
        limit_bytes: what its entries can be together; some writers compress them.
        verify: compare checksums.

    Returns:
        The number of payload bytes that were proved right; 0 if this is no zip archive.

    Raises:
        FormatError: the entries would inflate to more than they can be.
        ChecksumMismatchError: an entry's bytes are not those that were written.
    """
    import zipfile  # noqa: PLC0415 - 10 ms that a worker without bytes items need not spend

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
        # A CRC of 0: written without checksums, or empty.
        checked = [info for info in entries if verify and info.CRC]
        return sum(check_entry(archive, info) for info in checked)


def check_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Compare an entry with its CRC-32, piece by piece.

    Returns:
        Its bytes.

    Raises:
        ChecksumMismatchError: they are not those that were written.
        ItemReadError: whatever the archive's file could not read.
    """
    try:
        with archive.open(info) as entry:
            while entry.read(_PIECE_BYTES):  # zipfile compares the CRC-32 at the end
                pass
    except ItemReadError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, and whatever a damaged entry provokes
        raise ChecksumMismatchError(
            f"entry {info.filename!r} of the record is damaged",
            expected=f"CRC-32 {info.CRC:08x}",
            got=str(error),
            hint=DAMAGED_HINT,
        ) from error
    return info.file_size
