"""What this process may use: cores, memory, and how many ranks of the host share them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import psutil

from paraload.executors._ramp import RampLimits

__all__ = [
    "available_memory_bytes",
    "choose_processes",
    "choose_ramp",
    "default_budget_bytes",
    "file_system_of",
    "usable_cores",
]

#: Readers that a network file system begins with, where each waits for a server.
_NETWORK_START: Final = 16
#: Readers that any other storage begins with, at most: no page cache has been faster with more.
_MAX_START: Final = 16
#: Readers at most: one stream of a shared file system gave 2.0 GiB/s, 32 gave 8.5; servers that are
#: far away need more.
_LIMIT: Final = 32
_NETWORK_LIMIT: Final = 64
#: File systems whose reads wait for a network (as psutil names them).
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "9p"}
)
#: A worker's block of small records and its results, or a process with its two slots.
THREAD_BYTES: Final = 8 << 20
PROCESS_BYTES: Final = 40 << 20
#: Of the free memory, the part that a load may plan with: the request leaves 20 % too.
_USABLE_PART: Final = 0.8

_CGROUP_V2: Final = Path("/sys/fs/cgroup")
_CGROUP_V1: Final = Path("/sys/fs/cgroup/memory")


def local_ranks() -> int:
    """Processes of this job on this host, as launchers tell it; 1 if none does."""
    for variable in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        if (text := os.environ.get(variable, "")).isdigit():
            return max(1, int(text))
    return 1


def usable_cores() -> int:
    """Cores that this process may run on, its control group's quota counted."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    quota = _read_words(_CGROUP_V2 / "cpu.max")
    if len(quota) == 2 and quota[0].isdigit():  # noqa: PLR2004 - "quota period"
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return max(1, cores)


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping, the control group's limit counted."""
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        (_CGROUP_V2 / "memory.max", _CGROUP_V2 / "memory.current"),
        (_CGROUP_V1 / "memory.limit_in_bytes", _CGROUP_V1 / "memory.usage_in_bytes"),
    ):
        limit, used = _read_words(limit_file), _read_words(used_file)
        if limit and used and limit[0].isdigit() and used[0].isdigit():
            free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def default_budget_bytes(ceiling: int, floor: int) -> int:
    """An eighth of this rank's share of the free memory, between ``floor`` and ``ceiling``."""
    return max(floor, min(ceiling, available_memory_bytes() // local_ranks() // 8))


def choose_ramp(path: str) -> RampLimits:
    """How many threads to begin with, and how many at most: waiting needs no core, memory it does.

    The request's rule was ``min(cores, 0.8 * free memory / file size)``. A worker here does not
    hold a file but a block, so what a worker costs is a constant.
    """
    cores = max(1, usable_cores() // local_ranks())
    start, limit = min(_MAX_START, max(2, cores)), _LIMIT
    if is_network_path(path):
        start, limit = max(start, _NETWORK_START), _NETWORK_LIMIT
    return RampLimits(start=start, limit=limit, cores=cores).at_most(_affordable(THREAD_BYTES))


def choose_processes() -> int:
    """Worker processes: as many as cores, never more than the memory allows."""
    return min(max(1, usable_cores() // local_ranks()), _affordable(PROCESS_BYTES))


def _affordable(cost_bytes: int) -> int:
    """Workers that fit into this rank's share of the free memory; at least one."""
    return max(1, int(available_memory_bytes() * _USABLE_PART) // local_ranks() // cost_bytes)


def is_network_path(path: str) -> bool:
    """Whether ``path`` lies on a file system that waits for a network."""
    kind = file_system_of(path)
    return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


def file_system_of(path: str) -> str:
    """The kind of file system that ``path`` lies on, as psutil names it; "" if it is not known."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for mount in psutil.disk_partitions(all=True):
        inside = real == mount.mountpoint or real.startswith(mount.mountpoint.rstrip("/") + "/")
        if inside and len(mount.mountpoint) >= len(best):
            best, kind = mount.mountpoint, mount.fstype
    return kind


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []  # no control group, or one that does not limit this
