"""The raw limit: the payloads' bytes, ``preadv``ed into the same tensors by as many threads.

Where they lie is found by the standard library rather than by us, before the clock starts.
"""

from __future__ import annotations

import struct
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint import FileSystemReader

from benchmarks.checkpoints import raw_bytes
from paraload.cli._raw import RawReader, pieces_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases import Case
    from paraload.cli._raw import Piece

__all__ = ["RawLimit"]


class RawLimit(RawReader):
    """Reads the whole tensors of ``case`` with ``workers`` threads."""

    def __init__(self, case: Case, *, workers: int, checksum: bool) -> None:
        super().__init__(list(_pieces(case)), workers=workers, checksum=checksum)


def _pieces(case: Case) -> Iterator[Piece]:
    reader = FileSystemReader(case.folder)
    metadata = reader.read_metadata()
    infos: dict[Any, Any] = metadata.storage_data
    starts = {index.fqn: _payload_start(case.folder, info) for index, info in infos.items()}
    # In the order of the files, as they were written.
    for name, (path, start) in sorted(starts.items(), key=lambda entry: entry[1]):
        memory = raw_bytes(case.targets[name]).numpy().data
        yield from pieces_of(path, start, len(memory), memory)


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
