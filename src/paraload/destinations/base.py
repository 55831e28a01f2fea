"""Destination: where the bytes of a load go, if not straight into the memory of a target."""

from collections.abc import Mapping
from typing import Any, Protocol


class StagingMemory(Protocol):
    """Memory that collects stored bytes until they are copied."""

    memory: memoryview


class Copy(Protocol):
    """A copy that has begun. Its source must stay as it is until the copy is done."""

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the copy, and return whether it is done; ``None`` waits forever, 0 not at all.

        If the copy has failed, this raises its error.
        """


class Destination(Protocol):
    """Takes what workers cannot write into a target directly; on the caller's thread only.

    A copy may be done later, such as one from pinned memory to a GPU. Until then the engine keeps
    its source and counts it against the memory budget.
    """

    def staging(self, nbytes: int) -> StagingMemory:
        """Uninitialised memory for ``nbytes``, which lives as long as the returned object."""

    def copy_into(self, target: Any, source: Any, *, item: int) -> Copy | None:
        """Copy ``source``, a CPU tensor over staging memory, into a tensor of the same shape.

        Return ``None`` if the copy is done. If the target does not take the values of ``item``, its
        number in the plan, raise an ``ItemReadError``.
        """

    def conversions(self) -> Mapping[str, int]:
        """The number of items of each dtype conversion so far."""
