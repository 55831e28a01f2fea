"""Targets that share memory: the last one that is committed wins.

Tied weights are two names for one memory, and both load. If they were saved with different values,
the last one silently wins in torch's reader. The result here is the same, but we report each target
that lost its values, and the one that overwrote it.
"""

from collections.abc import Iterator

import torch

from paraload.core.checksum import crc32
from paraload.core.tasks import RecordSpec
from paraload.destinations.tensor_memory import extent
from paraload.errors import AliasedTargetError


class Aliases:
    """Items that were loaded into memory that several targets share, in commit order."""

    def __init__(self) -> None:
        self._loaded: list[tuple[RecordSpec, torch.Tensor, int]] = []

    def loaded(self, spec: RecordSpec, target: torch.Tensor) -> None:
        self._loaded.append((spec, target, _checksum(target)))

    def overwritten(self) -> Iterator[tuple[RecordSpec, RecordSpec]]:
        """Items whose targets lost their values, each with the item that overwrote it."""
        for at, (spec, target, before) in enumerate(self._loaded):
            if _checksum(target) != before:
                yield spec, self._last_over(at)

    def _last_over(self, at: int) -> RecordSpec:
        first, end = extent(self._loaded[at][1])
        for spec, target, _ in reversed(self._loaded[at + 1 :]):
            later_first, later_end = extent(target)
            if later_first < end and first < later_end:
                return spec
        return self._loaded[at][0]


def _checksum(tensor: torch.Tensor) -> int:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return crc32(flat.view(torch.uint8).numpy().data) if len(flat) else 0


def aliased_target(by: RecordSpec) -> AliasedTargetError:
    return AliasedTargetError(
        f"the target shares memory with {by.fqn!r}, which was saved with different values",
        hint="Give it memory of its own, or load only one of the two; without strict=True the last"
        " one wins, as in torch",
    )
