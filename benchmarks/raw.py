"""The raw limit: the payloads' bytes, ``preadv``ed into the same tensors by as many threads.

No format, no plan, no checks: every position is known before the clock starts, and the threads take
pieces from a queue until it is empty. Nothing that reads a file into memory can be faster by much,
so this is the bar. With ``checksum`` each piece is summed too, while it is in the processor's
cache, which is what verification must cost on this machine.
"""

from __future__ import annotations

import os
import struct
import threading
import zipfile
from collections import deque
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.checkpoint import FileSystemReader
from zlib_ng.zlib_ng import crc32

from benchmarks.checkpoints import raw_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases import Case

__all__ = ["RawLimit"]

#: Pieces of 4 to 64 MiB were equally fast; much longer ones leave one thread alone at the end.
_PIECE_BYTES: Final = 16 << 20
#: Of 64 KiB to 16 MiB the fastest: with shorter pieces the threads wait for each other at each of
#: them, longer ones have left the processor's cache when they are summed.
_CHECKSUM_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    path: str
    start: int
    memory: memoryview


class RawLimit:
    """Reads the whole tensors of ``case`` with ``workers`` threads."""

    def __init__(self, case: Case, *, workers: int, checksum: bool) -> None:
        self._workers = workers
        self._checksum = checksum
        self._pieces = list(_pieces(case))

    def run(self) -> None:
        """Read everything."""
        fds: dict[str, int] = {}
        try:
            for piece in self._pieces:
                if piece.path not in fds:
                    fds[piece.path] = os.open(piece.path, os.O_RDONLY)
            self._run_threads(fds)
        finally:
            for fd in fds.values():
                os.close(fd)

    def _run_threads(self, fds: dict[str, int]) -> None:
        queue = deque((fds[piece.path], piece.start, piece.memory) for piece in self._pieces)
        step = _CHECKSUM_BYTES if self._checksum else _PIECE_BYTES
        errors: list[OSError] = []

        def work() -> None:
            try:
                while queue:
                    _read(*queue.popleft(), step=step, checksum=self._checksum)
            except IndexError:
                return  # another thread took the last piece
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def _read(fd: int, start: int, memory: memoryview, *, step: int, checksum: bool) -> None:
    crc = 0
    at = 0
    while at < len(memory):
        part = memory[at : at + step]
        got = os.preadv(fd, (part,), start + at)
        if not got:
            raise OSError("the file ends too early")
        if checksum:
            crc = crc32(part[:got], crc)
        at += got


def _pieces(case: Case) -> Iterator[_Piece]:
    reader = FileSystemReader(case.folder)
    metadata = reader.read_metadata()
    infos: dict[Any, Any] = metadata.storage_data
    starts = {index.fqn: _payload_start(case.folder, info) for index, info in infos.items()}
    # In the order of the files, as they were written.
    for name, (path, start) in sorted(starts.items(), key=lambda entry: entry[1]):
        memory = raw_bytes(case.targets[name]).numpy().data
        for at in range(0, len(memory), _PIECE_BYTES):
            piece = memory[at : at + _PIECE_BYTES]
            yield _Piece(path=path, start=start + at, memory=piece)


def _payload_start(folder: Path, info: Any) -> tuple[str, int]:
    """File and position of a tensor's bytes, found by the standard library rather than by us."""
    path = folder / info.relative_path
    with path.open("rb") as file:
        file.seek(info.offset)
        archive = BytesIO(file.read(info.length))
    with zipfile.ZipFile(archive) as entries:
        (entry,) = [e for e in entries.infolist() if e.filename.endswith("/data/0")]
    header = archive.getbuffer()[entry.header_offset : entry.header_offset + 30]
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    return str(path), info.offset + entry.header_offset + 30 + name_bytes + extra_bytes
