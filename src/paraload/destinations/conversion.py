"""Copies stored tensors into targets of another dtype, device or layout.

``Tensor.copy_`` converts silently. Here, conversions of the dtype are counted, or refused with
``strict=True``; a conversion that would drop imaginary parts is always refused.
"""

from collections import defaultdict

import torch

from paraload.core.records import dtype_name
from paraload.destinations.targets import require_shape, target_without_memory
from paraload.destinations.tensor_memory import Staging, has_shared_places, memory_fault
from paraload.errors import DtypeMismatchError, ItemReadError


def refused_conversion(
    stored: torch.dtype, target: torch.dtype, *, strict: bool
) -> DtypeMismatchError | None:
    """The error for a target of another dtype; ``None`` if torch may convert."""
    expected = dtype_name(stored)
    if stored.is_complex and not target.is_complex:
        problem = "the stored tensor is complex and its target is not"
        expected = f"a complex target for {expected}"
        hint = "Load it into a complex tensor and take its real or imaginary part"
    elif strict:
        problem = "the dtypes of the target and the stored tensor differ"
        hint = "Create the target with the stored dtype; without strict=True it is converted"
    else:
        return None
    return DtypeMismatchError(problem, expected=expected, got=dtype_name(target), hint=hint)


class HostDestination:
    """Stages in the memory of this process and copies at once."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._items: defaultdict[str, set[int]] = defaultdict(set)  # by conversion

    def staging(self, nbytes: int) -> Staging:
        return Staging(nbytes)

    def copy_into(self, target: torch.Tensor, source: torch.Tensor, *, item: int) -> None:
        self.require_copyable(target, source, item=item)
        try:
            # Detached because copy_ refuses inference tensors and views of them as targets.
            target.detach().copy_(source)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            expanded = "The target is an expanded tensor; load into target.contiguous()"
            raise ItemReadError(
                "torch cannot copy the stored tensor into its target",
                expected=f"a target that takes {source.dtype}",
                got=f"{target.dtype} on {target.device}: {error}",
                hint=expanded if has_shared_places(target) else None,
            ) from error

    def require_copyable(self, target: torch.Tensor, source: torch.Tensor, *, item: int) -> None:
        require_shape(target, tuple(source.shape))  # copy_ would broadcast some shapes silently
        # Without memory, copy_ would crash or do nothing.
        if (fault := memory_fault(target)) is not None:
            raise target_without_memory(target, fault)
        if source.dtype != target.dtype:
            refused = refused_conversion(source.dtype, target.dtype, strict=self._strict)
            if refused is not None:
                raise refused
            self._items[f"{dtype_name(source.dtype)} to {dtype_name(target.dtype)}"].add(item)

    def conversions(self) -> dict[str, int]:
        return {conversion: len(items) for conversion, items in sorted(self._items.items())}
