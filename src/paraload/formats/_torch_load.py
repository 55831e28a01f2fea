"""The fallback: records that only torch can read. Needs torch, so nothing torch-free imports it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import torch

from paraload.errors import DAMAGED_HINT, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from paraload._geometry import Shape

__all__ = ["can_open", "load_tensor", "narrow_tensor", "narrow_with_hook"]

_SHOWN_OF_REASON: Final = 200


def load_tensor(data: memoryview) -> torch.Tensor:
    """``torch.load`` of a whole record, on the CPU, weights only.

    Raises:
        FormatError: torch cannot read it either, or it is no tensor.
    """
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises anything for damaged bytes
        # Without torch's own text, which advises to run whatever is in the file.
        raise FormatError(
            "torch cannot read the record either", got=_reason(error), hint=DAMAGED_HINT
        ) from None
    if not isinstance(loaded, torch.Tensor):
        raise FormatError(
            "no tensor is stored where the metadata places one",
            got=f"an object of type {type(loaded).__name__}",
            hint="File and metadata do not belong together",
        )
    return loaded


def can_open(data: memoryview) -> bool:
    """Whether torch takes the bytes for an archive of its own: so it begins to load them."""
    try:
        torch._C.PyTorchFileReader(io.BytesIO(data))  # noqa: SLF001 - what torch.load itself opens
    except RuntimeError:
        return False
    return True


def _reason(error: Exception) -> str:
    """What is wrong, of all that torch says."""
    lines = str(error).splitlines() or [""]
    told = next((line for line in lines if "WeightsUnpickler error" in line), lines[0])
    return f"{type(error).__name__}: {told.strip()[:_SHOWN_OF_REASON]}"


def narrow_tensor(tensor: torch.Tensor, storage_offsets: Shape, lengths: Shape) -> torch.Tensor:
    """Cut the needed slice: what ``narrow_tensor=`` replaces.

    A dimension of which all is wanted is left alone, as torch's own reader does.
    """
    for dim, (offset, length) in enumerate(zip(storage_offsets, lengths, strict=True)):
        if length < tensor.size(dim):
            tensor = tensor.narrow(dim, offset, length)
    return tensor


def narrow_with_hook(
    data: memoryview, hook: Callable[..., Any], storage_offsets: Shape, lengths: Shape
) -> dict[str, Any]:
    """Load, cut with the user's hook, and give the bytes: the fields of a ``NarrowedTensor``."""
    tensor = hook(load_tensor(data), storage_offsets, lengths).detach().contiguous()
    nbytes = tensor.numel() * tensor.element_size()
    flat = tensor.reshape(-1).view(torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
    return {
        "data": memoryview(flat.numpy().data),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "itemsize": tensor.element_size(),
        "shape": tuple(tensor.shape),
    }
