"""Targets that share memory must have been saved with the same values there.

Tied weights have two names and one memory, and both load. Where they were saved with different
values, torch's reader lets the last one win and says nothing; here the first one, whose values are
gone, is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paraload._destination import checksum
from paraload.errors import AliasedTargetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from paraload._task import RecordSpec

__all__ = ["Aliases"]


class Aliases:
    """What was loaded into memory that several targets share."""

    def __init__(self) -> None:
        self._loaded: list[tuple[RecordSpec, torch.Tensor, int]] = []

    def loaded(self, spec: RecordSpec, target: torch.Tensor) -> None:
        """``target`` has its values now."""
        self._loaded.append((spec, target, checksum(target)))

    def overwritten(self) -> Iterator[tuple[RecordSpec, AliasedTargetError]]:
        """The items whose values are not in their targets any more."""
        for spec, target, before in self._loaded:
            if checksum(target) != before:
                yield (
                    spec,
                    AliasedTargetError(
                        "the target shares memory with another one, into which other values were"
                        " loaded",
                        hint="Give it memory of its own, or load only one of the two",
                    ),
                )
