"""Decoders of stream transforms, run by the workers.

torch's writer stores the descriptor of each ``StreamTransformExtension`` with the item, such as
``("stream.zstd/1",)``; reading applies their decoders in that order. ``stream.zstd`` is decoded
with ``zstandard`` itself, so that workers do not import torch; other extensions run unchanged.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

from paraload.errors import DAMAGED_HINT, TransformError
from paraload.hooks import StorageItem


class Decoder(Protocol):
    """Undoes one transform of a whole record. Decoders pickle, for worker processes."""

    def __call__(self, data: memoryview, limit_bytes: int) -> memoryview:
        """Decode ``data``, or raise ``TransformError``: damaged, or more than ``limit_bytes``."""


#: RFC 8878: a block has at least 4 bytes, and decodes to at most 128 KiB.
_ZSTD_MOST_INFLATION: Final = (128 << 10) // 4


@dataclass(frozen=True, slots=True)
class ZstdDecoder:
    """``stream.zstd/1``: one zstandard frame."""

    def __call__(self, data: memoryview, limit_bytes: int) -> memoryview:
        # zstandard allocates the limit at once, and the metadata that it comes from may be wrong.
        limit_bytes = min(limit_bytes, len(data) * _ZSTD_MOST_INFLATION)
        import zstandard  # noqa: PLC0415 - an extra; resolved to this decoder only if installed

        try:
            claimed = zstandard.get_frame_parameters(data).content_size
            if limit_bytes < claimed < zstandard.CONTENTSIZE_UNKNOWN:
                raise _too_long(f"a zstd frame of {claimed} bytes", limit_bytes)
            decoder = zstandard.ZstdDecompressor()
            return memoryview(decoder.decompress(data, max_output_size=limit_bytes))
        except zstandard.ZstdError as error:
            raise TransformError(
                "zstd frame is cut, damaged, or longer than it can be",
                expected=f"at most {limit_bytes} bytes from {len(data)} compressed ones",
                got=str(error),
                hint=DAMAGED_HINT,
            ) from error


@dataclass(frozen=True, slots=True)
class ExtensionDecoder:
    """Any ``StreamTransformExtension``; ``extension`` must pickle for process executors."""

    extension: Any
    descriptor: str

    def __call__(self, data: memoryview, limit_bytes: int) -> memoryview:
        try:
            decoded = self.extension.transform_from(io.BytesIO(data)).read(-1)
        except Exception as error:
            problem = f"transform {self.descriptor!r} failed"
            raise TransformError(problem, got=f"{type(error).__name__}: {error}") from error
        if len(decoded) > limit_bytes:
            raise _too_long(f"{len(decoded)} bytes of transform {self.descriptor!r}", limit_bytes)
        return memoryview(decoded)


def _too_long(what: str, limit_bytes: int) -> TransformError:
    return TransformError(
        "a record inflates to more than it can be",
        expected=f"at most {limit_bytes} bytes",
        got=what,
        hint=DAMAGED_HINT,
    )


def no_decoder(descriptor: str) -> TransformError:
    return TransformError(
        f"no decoder for transform {descriptor!r}",
        hint="Register its extension with _extension_registry=, or pass transform=",
    )


def decode(data: memoryview, decoders: Iterable[Decoder], limit_bytes: int) -> memoryview:
    for decoder in decoders:
        data = decoder(data, limit_bytes)
    return data


def slice_stream(stream: IO[bytes], item_metadata: StorageItem) -> IO[bytes]:
    """Cut an item's bytes out of a seekable stream of its file: the default of ``slice_file``."""
    stream.seek(item_metadata.offset)
    return io.BytesIO(stream.read(item_metadata.length))
