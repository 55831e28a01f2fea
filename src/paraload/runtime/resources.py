"""What this process may use: cores, memory, and how many ranks of the host share them."""

import os
from pathlib import Path
from typing import Final

import psutil

#: Types of file systems whose reads wait for a network.
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "9p"}
)
_CGROUP_V2: Final = Path("/sys/fs/cgroup")
_CGROUP_V1: Final = Path("/sys/fs/cgroup/memory")


def local_ranks() -> int:
    """Ranks of this job on this host, from the launcher's environment; 1 if it is not set."""
    for variable in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        if (text := os.environ.get(variable, "")).isdigit():
            return max(1, int(text))
    return 1


def usable_cores() -> int:
    """Cores that this process may run on, within the quota of its control group."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    match _read_words(_CGROUP_V2 / "cpu.max"):
        case [quota, period] if quota.isdigit():  # it is "max" without a quota
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def available_memory_bytes() -> int:
    """Memory that is free without swapping, within the limit of the control group."""
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        (_CGROUP_V2 / "memory.max", _CGROUP_V2 / "memory.current"),
        (_CGROUP_V1 / "memory.limit_in_bytes", _CGROUP_V1 / "memory.usage_in_bytes"),
    ):
        match _read_words(limit_file), _read_words(used_file):
            case [limit], [used] if limit.isdigit():
                free = min(free, max(0, int(limit) - int(used)))
    return free


def default_budget_bytes(ceiling: int, floor: int) -> int:
    """An eighth of this rank's share of the free memory, between ``floor`` and ``ceiling``."""
    return max(floor, min(ceiling, available_memory_bytes() // local_ranks() // 8))


def is_network_path(path: str) -> bool:
    kind = file_system_of(path)
    return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


def file_system_of(path: str) -> str:
    """The type of the file system of ``path``; "" if it is not known."""
    real = Path(os.path.realpath(path))
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[at] for at in map(str, (real, *real.parents)) if at in mounts), "")


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []  # no control group, or one without this limit
