"""The raw limit: the payloads' bytes, ``preadv``ed into the same tensors by as many threads.

Where they lie is found by the standard library rather than by paraload, before the clock starts.
With ``checksum`` each piece is summed too, while it is in the processor's cache: the price of
verification on this machine.
"""

from __future__ import annotations

import struct
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.checkpoint import FileSystemReader

from benchmarks.checkpoints import raw_bytes
from benchmarks.preadv import Piece, pieces_of, read_piece, read_raw
from paraload.core.checksum import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases import Case

__all__ = ["RawLimit"]

#: The fastest between 64 KiB and 16 MiB: the threads wait for each other after each of many shorter
#: steps, and longer ones have left the processor's cache before they are summed.
_CHECKSUM_BYTES: Final = 4 << 20


class RawLimit:
    """Reads the whole tensors of ``case`` with ``workers`` threads."""

    def __init__(self, case: Case, *, workers: int, checksum: bool) -> None:
        self._pieces = list(_pieces(case))
        self._workers = workers
        self._read = _read_and_sum if checksum else read_piece

    def run(self) -> None:
        """Read everything."""
        read_raw(self._pieces, workers=self._workers, read=self._read)


def _read_and_sum(fd: int, piece: Piece) -> None:
    crc = 0
    for at in range(0, len(piece.memory), _CHECKSUM_BYTES):
        memory = piece.memory[at : at + _CHECKSUM_BYTES]
        read_piece(fd, Piece(piece.path, piece.start + at, memory))
        crc = crc32(memory, crc)


def _pieces(case: Case) -> Iterator[Piece]:
    reader = FileSystemReader(case.folder)
    metadata = reader.read_metadata()
    infos: dict[Any, Any] = metadata.storage_data
    starts = {index.fqn: _payload_start(case.folder, info) for index, info in infos.items()}
    # In the order of the files, as they were written.
    for name, (path, start) in sorted(starts.items(), key=lambda entry: entry[1]):
        memory = raw_bytes(case.targets[name]).numpy().data
        yield from pieces_of(path, start, memory)


def _payload_start(folder: Path, info: Any) -> tuple[str, int]:
    """File and position of a tensor's bytes."""
    path = folder / info.relative_path
    with path.open("rb") as file:
        file.seek(info.offset)
        archive = BytesIO(file.read(info.length))
    with zipfile.ZipFile(archive) as entries:
        (entry,) = [e for e in entries.infolist() if e.filename.endswith("/data/0")]
    header = archive.getbuffer()[entry.header_offset : entry.header_offset + 30]
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    return str(path), info.offset + entry.header_offset + 30 + name_bytes + extra_bytes
