"""The number of workers, and the memory that they may use."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from paraload.executors import choice
from paraload.options import ReadOptions
from paraload.runtime import resources
from paraload.sources.local import LocalSource


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A host with 64 cores and 100 GiB free, without control groups."""
    for name in (*resources._LOCAL_RANKS, "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(resources, "_CGROUP_V2", tmp_path / "v2")
    monkeypatch.setattr(resources, "_CGROUP_V1", tmp_path / "v1")
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(64)))
    free = SimpleNamespace(available=100 << 30)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(resources, "is_network_path", lambda path: path == "/nfs")
    (tmp_path / "v2").mkdir()
    (tmp_path / "v1").mkdir()
    return SimpleNamespace(v2=tmp_path / "v2", v1=tmp_path / "v1", memory=free, env=monkeypatch)


def test_threads_begin_with_the_cores_and_may_become_more(machine):
    ramp = choice.choose_ramp("/ckpt")
    assert (ramp.start, ramp.limit, ramp.cores) == (16, 32, 64)


def test_processes_follow_the_cores(machine):
    assert choice.choose_processes() == 64


def test_local_ranks_share_the_cores(machine):
    machine.env.setenv("LOCAL_WORLD_SIZE", "8")
    assert choice.choose_processes() == 8
    ramp = choice.choose_ramp("/ckpt")
    assert (ramp.start, ramp.limit, ramp.cores) == (8, 8, 8)
    ramp = choice.choose_ramp("/nfs")
    assert (ramp.start, ramp.limit) == (2, 8)
    ramp = choice.choose_ramp(None, 32)
    assert (ramp.start, ramp.limit) == (4, 32)


def test_two_ranks_on_two_cores_can_still_become_more(machine):
    (machine.v2 / "cpu.max").write_text("200000 100000\n")
    machine.env.setenv("LOCAL_WORLD_SIZE", "2")
    ramp = choice.choose_ramp("/ckpt")
    assert (ramp.start, ramp.limit, ramp.cores) == (2, 16, 1)


@pytest.mark.parametrize(
    ("tasks", "node", "ranks"),
    [
        ("8", "0", 8),
        ("8(x2),4", "1", 8),
        ("8(x2),4", "2", 4),
        ("2,4(x3)", "0", 2),
        ("8(x2),4", "", 8),
        ("8(x2),4", "9", 8),
        ("", "0", 1),
        ("many", "0", 1),
        ("1(x999999999999)", "3", 1),
    ],
)
def test_slurm_tells_the_ranks_of_each_node(machine, tasks, node, ranks):
    machine.env.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    machine.env.setenv("SLURM_NODEID", node)
    assert resources.local_ranks() == ranks
    machine.env.setenv("LOCAL_WORLD_SIZE", "3")  # torchrun as the one task of a node
    assert resources.local_ranks() == 3


@pytest.mark.parametrize(
    ("world", "devices", "ranks"),
    [(8, 8, 8), (64, 8, 8), (2, 8, 2), (8, 0, 8), (512, 0, 64), (None, 8, 1)],
)
def test_ranks_without_a_launcher_are_taken_for_neighbours(machine, world, devices, ranks):
    torch = SimpleNamespace(
        cuda=SimpleNamespace(device_count=lambda: devices),
        distributed=SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: world is not None,
            get_world_size=lambda: world,
        ),
    )
    machine.env.setitem(sys.modules, "torch", torch)
    assert resources.local_ranks() == ranks


def test_what_is_given_is_exact_on_each_rank(machine):
    machine.env.setenv("LOCAL_WORLD_SIZE", "8")
    plan = choice.choose_execution(
        ReadOptions(max_workers=12, memory_budget_bytes=3 << 30),
        source=LocalSource("/ckpt"),
        total_bytes=1 << 30,
        not_in_processes="",
    )
    assert (plan.executor.workers, plan.staging_bytes) == (12, 3 << 30)


def test_the_limit_of_threads_has_nothing_to_do_with_cores(machine):
    (machine.v2 / "cpu.max").write_text("200000 100000\n")
    assert resources.usable_cores() == 2
    ramp = choice.choose_ramp("/ckpt")
    assert (ramp.start, ramp.limit, ramp.cores) == (2, 32, 2)


def test_network_storage_begins_with_more_threads(machine):
    (machine.v2 / "cpu.max").write_text("200000 100000\n")
    ramp = choice.choose_ramp("/nfs")
    assert (ramp.start, ramp.limit, ramp.cores) == (16, 64, 2)


def test_a_storage_may_set_its_number_of_requests(machine):
    (machine.v2 / "cpu.max").write_text("200000 100000\n")
    assert choice.choose_ramp(None).limit == 32
    for asked, start in ((1, 1), (4, 4), (32, 32), (100, 32)):
        ramp = choice.choose_ramp(None, asked)
        assert (ramp.start, ramp.limit) == (start, asked)


def test_never_more_workers_than_memory_allows(machine):
    machine.memory.available = 100 << 20
    assert choice.choose_processes() == 2
    assert choice.choose_ramp("/ckpt").limit == 10
    machine.memory.available = 1 << 20
    assert choice.choose_processes() == 1
    assert choice.choose_ramp("/ckpt").start == 1
    assert choice.choose_ramp("/ckpt").limit == 1


@pytest.mark.parametrize(
    ("folder", "limit_file", "used_file"),
    [
        ("v2", "memory.max", "memory.current"),
        ("v1", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_control_groups_limit_the_memory(machine, folder, limit_file, used_file):
    (getattr(machine, folder) / limit_file).write_text(str(4 << 30))
    (getattr(machine, folder) / used_file).write_text(str(1 << 30))
    assert resources.available_memory_bytes() == 3 << 30


def test_a_control_group_without_a_limit_does_not(machine):
    (machine.v2 / "memory.max").write_text("max")
    (machine.v2 / "memory.current").write_text("123")
    (machine.v2 / "cpu.max").write_text("max 100000")
    assert resources.available_memory_bytes() == 100 << 30
    assert resources.usable_cores() == 64


def test_the_budget_is_a_part_of_the_rank_s_share(machine):
    machine.env.setenv("LOCAL_WORLD_SIZE", "8")
    assert resources.default_budget_bytes(256 << 20, 1 << 20) == 256 << 20
    machine.memory.available = 1 << 30
    assert resources.default_budget_bytes(256 << 20, 1 << 20) == 16 << 20
    machine.memory.available = 0
    assert resources.default_budget_bytes(256 << 20, 1 << 20) == 1 << 20


@pytest.mark.parametrize(
    ("path", "network"),
    [("/mnt/nfs/run/1", True), ("/mnt/other", False), ("/data/x", True), ("/mnt/nfsx", False)],
)
def test_the_longest_mount_point_decides(monkeypatch, path, network):
    mounts = [("/", "ext4"), ("/mnt/nfs", "nfs4"), ("/mnt", "xfs"), ("/data", "fuse.sshfs")]
    monkeypatch.setattr(
        resources.psutil,
        "disk_partitions",
        lambda **_: [SimpleNamespace(mountpoint=m, fstype=kind) for m, kind in mounts],
    )
    assert resources.is_network_path(path) is network
