"""Stream transforms: from a descriptor in the metadata to a decoder that runs in a worker.

torch's writer puts the descriptor of every ``StreamTransformExtension`` beside the item
(``("stream.zstd/1",)``); reading applies them in that order. ``stream.zstd`` is decoded with
``zstandard`` itself, which keeps workers free of torch; every other registered extension runs as it
is, in the worker.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

from paraload.errors import TransformError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Decoder", "ExtensionDecoder", "ZstdDecoder", "decode", "slice_stream"]


class Decoder(Protocol):
    """Undoes one transform of a whole record; picklable."""

    def __call__(self, data: memoryview) -> memoryview:
        """The decoded bytes."""


@dataclass(frozen=True, slots=True)
class ZstdDecoder:
    """``stream.zstd/1``: one zstandard frame."""

    def __call__(self, data: memoryview) -> memoryview:
        """Decompress; a cut or damaged frame is a :class:`TransformError`."""
        import zstandard  # noqa: PLC0415 - an extra; resolved to this decoder only if installed

        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            decoded = frame.decompress(data)
        except zstandard.ZstdError as error:
            raise TransformError("zstd frame is damaged", got=str(error)) from error
        if not frame.eof:
            raise TransformError("zstd frame is cut", got=f"{len(data)} bytes without its end")
        return memoryview(decoded)


@dataclass(frozen=True, slots=True)
class ExtensionDecoder:
    """Any ``StreamTransformExtension``; ``extension`` must pickle for process executors."""

    extension: Any
    descriptor: str

    def __call__(self, data: memoryview) -> memoryview:
        """Run the extension over the record."""
        try:
            decoded = self.extension.transform_from(io.BytesIO(data)).read(-1)
        except Exception as error:
            problem = f"transform {self.descriptor!r} failed"
            raise TransformError(problem, got=f"{type(error).__name__}: {error}") from error
        return memoryview(decoded)


def decode(data: memoryview, decoders: Iterable[Decoder]) -> memoryview:
    """Apply ``decoders`` in order."""
    for decoder in decoders:
        data = decoder(data)
    return data


def slice_stream(stream: IO[bytes], item_metadata: Any) -> IO[bytes]:
    """The item's bytes of an open file: what ``slice_file`` replaces.

    Args:
        stream: a seekable stream of the whole file.
        item_metadata: has ``offset`` and ``length`` in bytes.
    """
    stream.seek(item_metadata.offset)
    return io.BytesIO(stream.read(item_metadata.length))
