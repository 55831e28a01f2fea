"""The checksums of a zip archive, entry by entry, as zipfile finds them in the directory.

Bytes items and tensors that only torch can read are ``torch.save`` archives too. Torch reads
``data.pkl`` and the central directory of every archive, so damage there is damage, although
paraload could do without. To take an archive apart costs 0.2 to 0.7 ms.
"""

from __future__ import annotations

import io
import struct
from typing import IO, TYPE_CHECKING, Final, NamedTuple, cast

from paraload.errors import DAMAGED_HINT, ChecksumMismatchError, FormatError, ItemReadError

if TYPE_CHECKING:
    import zipfile

_PIECE_BYTES: Final = 1 << 20
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
#: A local header, but for its name and extra; and the lengths of these, 26 bytes into it.
LOCAL_BYTES: Final = 30
LOCAL_NAMES: Final = struct.Struct("<26x2H")


class Directory(NamedTuple):
    """What was found of an archive that was taken apart.

    Attributes:
        verified_bytes: of its entries, compared with a CRC-32.
        unverifiable_bytes: that have none.
        entries: all of them; none if the record is not an archive.
        start: where the directory begins, relative to the record.
        payload: the entry that was left out.
    """

    verified_bytes: int
    unverifiable_bytes: int
    entries: tuple[zipfile.ZipInfo, ...] = ()
    start: int = 0
    payload: zipfile.ZipInfo | None = None


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
        return sum(_check_entry(archive, info) for info in checked)


def check_entries(
    file: io.BufferedIOBase, nbytes: int, *, payload_start: int | None = None
) -> Directory:
    """Check all entries of the archive in ``file``, ``nbytes`` long, but the payload.

    Raises:
        ItemReadError: it is damaged, or cannot be read.
    """
    import zipfile  # noqa: PLC0415 - likewise

    try:
        archive = zipfile.ZipFile(cast("IO[bytes]", file))  # it reads and seeks, that is all
    except ItemReadError:
        raise
    except Exception as error:  # BadZipFile, struct.error and more, of damaged bytes
        file.seek(0)
        if file.read(len(_LOCAL_SIGNATURE)) != _LOCAL_SIGNATURE:
            return Directory(0, nbytes)  # written by a torch that knew no archives
        raise FormatError(
            "the record's archive has a damaged directory, so that torch cannot open it",
            got=f"{type(error).__name__}: {error}",
            hint=DAMAGED_HINT,
        ) from error
    verified = unverifiable = 0
    payload = None
    with archive:
        for info in archive.infolist():
            if payload_start is not None and _starts_at(file, info) == payload_start:
                payload = info
            elif info.CRC == 0 and info.file_size:
                unverifiable += info.file_size
            else:
                verified += _check_entry(archive, info)
        entries = tuple(archive.infolist())
        return Directory(verified, unverifiable, entries, archive.start_dir, payload)


def _starts_at(file: io.BufferedIOBase, info: zipfile.ZipInfo) -> int:
    """First byte of an entry, as its local header tells."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_BYTES)
    if len(header) < LOCAL_BYTES or not header.startswith(_LOCAL_SIGNATURE):
        raise FormatError("an entry's local header is damaged", hint=DAMAGED_HINT)
    names: tuple[int, int] = LOCAL_NAMES.unpack_from(header)
    return info.header_offset + len(header) + sum(names)


def _check_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Compare an entry with its CRC-32, piece by piece; its bytes."""
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
