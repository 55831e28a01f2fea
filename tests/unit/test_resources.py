"""The number of workers, and the memory that they may use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from paraload.executors import choice
from paraload.runtime import resources


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A host with 64 cores and 100 GiB free, without control groups."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
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
    assert (ramp.start, ramp.limit, ramp.cores) == (8, 32, 8)


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
    for asked, start in ((4, 4), (32, 32), (100, 32)):
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
