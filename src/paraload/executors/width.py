"""How many readers a load starts with, and how many it may reach."""

from __future__ import annotations

from typing import Final

from paraload.executors.ramp import RampLimits
from paraload.runtime import resources

#: Most readers at the start. On a network file system, where each waits for a server, it is also
#: the least; no page cache has been faster with more.
_START: Final = 16
#: Most readers: one stream of a shared file system gave 2.0 GiB/s, 32 gave 8.5. Distant servers
#: need more.
_LIMIT: Final = 32
_NETWORK_LIMIT: Final = 64
#: Memory of a thread (a block of small records and its results) and of a process with two slots.
_THREAD_BYTES: Final = 8 << 20
_PROCESS_BYTES: Final = 40 << 20
#: The part of the free memory that a load may plan with.
_USABLE_PART: Final = 0.8


def choose_ramp(path: str | None, requests_in_flight: int | None = None) -> RampLimits:
    """The number of reader threads for a storage.

    ``path`` is a folder of a mounted file system, and ``None`` for other storages;
    ``requests_in_flight`` is the storage's own limit.

    It does not depend on the size of files, since a reader holds a block and not a file. The limit
    does not depend on the cores, since a reader that waits for storage needs memory but no core.
    """
    cores = _cores()
    start, limit = min(_START, max(2, cores)), _LIMIT
    if requests_in_flight is not None:
        start, limit = min(_START, requests_in_flight), requests_in_flight
    elif path is not None and resources.is_network_path(path):
        start, limit = _START, _NETWORK_LIMIT
    return RampLimits(start=start, limit=limit, cores=cores).at_most(_affordable(_THREAD_BYTES))


def choose_processes() -> int:
    """Worker processes: one for each core, as far as memory allows."""
    return min(_cores(), _affordable(_PROCESS_BYTES))


def _cores() -> int:
    return max(1, resources.usable_cores() // resources.local_ranks())


def _affordable(cost_bytes: int) -> int:
    """Workers that fit into this rank's share of the free memory; at least one."""
    usable_bytes = int(resources.available_memory_bytes() * _USABLE_PART)
    return max(1, usable_bytes // resources.local_ranks() // cost_bytes)
