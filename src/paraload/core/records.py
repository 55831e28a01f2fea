"""A stored tensor: where its payload lies, and how its elements lie in that."""

from dataclasses import dataclass
from typing import Any, Final

from paraload.geometry.runs import Shape, extent_bytes

#: Bytes of an element for every dtype whose bytes can be taken as they are.
DTYPE_BYTES: Final[dict[str, int]] = {
    **dict.fromkeys(("bool", "uint8", "int8", "bits8", "bits1x8", "bits2x4", "bits4x2"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("float8_e8m0fnu", "float4_e2m1fn_x2"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16", "bits16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}


def dtype_name(dtype: Any) -> str:
    """Torch's name of ``dtype``, without ``torch.``: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A stored tensor.

    Attributes:
        strides: in elements.
        storage_offset: the tensor's first element, counted in elements of the payload.
        start: first byte of the payload, relative to the record.
        end: one past its last byte.
        crc: CRC-32 of the payload if the header has it; 0 means that none was written.
        trailer: ``[start, end)`` of the descriptor behind the payload that has the CRC-32 instead.
    """

    dtype: str
    itemsize: int
    shape: Shape
    strides: Shape
    storage_offset: int
    start: int
    end: int
    crc: int | None = None
    trailer: tuple[int, int] | None = None

    def first_byte(self, offsets: Shape) -> int:
        """The byte, relative to the payload, of the element at ``offsets``."""
        at = 0
        if any(offsets):
            at = sum(o * s for o, s in zip(offsets, self.strides, strict=True))
        return (self.storage_offset + at) * self.itemsize

    @property
    def payload_bytes(self) -> int:
        return self.end - self.start

    def is_sound(self) -> bool:
        """Whether every element lies in the payload, at strides of at least one element."""
        extent = extent_bytes(self.shape, self.strides, self.itemsize)
        first = self.storage_offset * self.itemsize
        return (
            0 <= self.start <= self.end
            and (extent == 0 or first + extent <= self.payload_bytes)
            and all(s >= 1 for n, s in zip(self.shape, self.strides, strict=True) if n > 1)
        )
