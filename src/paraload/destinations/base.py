"""Destination: where the bytes of a load go, if not straight into the memory of a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class StagingMemory(Protocol):
    """Memory that collects stored bytes until they are copied."""

    memory: memoryview


class Copy(Protocol):
    """A copy that has begun. Its source must stay as it is until the copy is done."""

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the copy; ``None`` waits forever, and 0 not at all.

        Returns:
            Whether the target has its values.

        Raises:
            Exception: the copy has failed.
        """


class Destination(Protocol):
    """Takes what workers cannot write into a target directly; on the caller's thread only.

    A copy may be done later, such as one from pinned memory to a GPU. Until then the engine keeps
    its source and counts it against the memory budget.
    """

    def staging(self, nbytes: int) -> StagingMemory:
        """Uninitialised memory for ``nbytes``, which lives as long as the returned object."""

    def copy_into(self, target: Any, source: Any, *, item: int) -> Copy | None:
        """Copy a stored tensor, or a part of one, into a tensor of the same shape.

        Args:
            target: the tensor to fill.
            source: a CPU tensor over staging memory.
            item: number of the item in the plan.

        Returns:
            ``None`` if the target has its values.

        Raises:
            ItemReadError: the target does not take it.
        """

    def conversions(self) -> Mapping[str, int]:
        """The number of items of each dtype conversion so far."""
