"""What this process may use: cores, memory, and how many ranks of the host share them."""

import os
import re
import sys
from pathlib import Path
from typing import Final

import psutil

#: Types of file systems whose reads wait for a network.
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "9p"}
)
_CGROUP_V2: Final = Path("/sys/fs/cgroup")
_CGROUP_V1: Final = Path("/sys/fs/cgroup/memory")
_LOCAL_RANKS: Final = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
#: Slurm writes "8(x2),4" for two nodes with 8 tasks and one with 4.
_SLURM_TASKS: Final = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_MOST_NODES: Final = 1 << 20


def local_ranks() -> int:
    """Ranks of this job on this host, which share its cores and memory; 1 if nothing tells.

    The launcher's environment says it. Ranks that were started in another way, such as by
    ``torch.multiprocessing``, are taken for neighbours as far as the host has devices for them:
    that needs no collective, which a rank could not run alone.
    """
    for variable in _LOCAL_RANKS:
        if (text := os.environ.get(variable, "")).isdigit():
            return max(1, int(text))
    if tasks := _slurm_tasks():
        return tasks
    torch = sys.modules.get("torch")  # without it there is no process group
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    devices = torch.cuda.device_count() or usable_cores()  # type: ignore[union-attr]
    return max(1, min(int(distributed.get_world_size()), devices))


def _slurm_tasks() -> int | None:
    """Tasks of this Slurm step on this node; ``None`` outside of a step."""
    tasks: list[int] = []
    for text in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if (match := _SLURM_TASKS.fullmatch(text)) is None:
            return None
        tasks += [int(match[1])] * min(int(match[2] or 1), _MOST_NODES)
    node = os.environ.get("SLURM_NODEID", "")
    return max(1, tasks[int(node)] if node.isdigit() and int(node) < len(tasks) else max(tasks))


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
