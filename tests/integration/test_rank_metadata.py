"""Checkpoints that each rank saved alone: only ``__N.metadata``, no ``.metadata``."""

from __future__ import annotations

import json
import logging
import pickle
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

import paraload
from paraload import ParallelFileSystemReader
from paraload.cli import main
from paraload.errors import MetadataError, MissingMetadataError, UnsafeMetadataError
from paraload.metadata import reading as metadata
from paraload.metadata.folder import folder_metadata
from paraload.sources.local import LocalSource
from tests.integration.ranks import run_ranks
from tests.old_torch import (
    HIDES_METADATA_ERRORS,
    OWN_METADATA,
    storage_info_of_hugging_face,
)

PROCESSES = {"executor": "processes", "max_workers": 2}


def state_of(rank):
    """The same names on each rank, and other values, shapes and objects."""
    return {
        "w": torch.arange(5.0 + rank) + 100 * rank,
        "big": torch.full((300, 300), float(rank)),
        "n": {"step": rank + 3},
    }


def blank(rank):
    return {"w": torch.zeros(5 + rank), "big": torch.zeros(300, 300), "n": {"step": None}}


def same(state, rank):
    expected = state_of(rank)
    return (
        torch.equal(state["w"], expected["w"])
        and torch.equal(state["big"], expected["big"])
        and state["n"] == expected["n"]
    )


def save(folder, *ranks):
    """As ``dcp.save(..., use_collectives=False)`` does on each of these ranks."""
    OWN_METADATA.require()
    for rank in reversed(ranks):  # torch warns where it finds rank 0
        planner, writer = dcp.DefaultSavePlanner(), FileSystemWriter(folder)
        writer.set_up_storage_writer(True, rank=rank, use_collectives=False)
        planner.set_up_planner(state_of(rank), writer.storage_meta(), True)
        plan = writer.prepare_local_plan(planner.create_local_plan())
        plans, made = planner.create_global_plan([plan])
        (plan,) = writer.prepare_global_plan(plans)
        writes = writer.write_data(planner.finish_plan(plan), planner)
        writer.finish(made, [writes.wait()])
    assert not (folder / ".metadata").exists()
    return folder


@pytest.fixture
def one(tmp_path):
    return save(tmp_path / "ckpt", 0)


@pytest.fixture
def two(tmp_path):
    return save(tmp_path / "ckpt", 0, 1)


def test_the_helper_saves_as_torch_does(tmp_path, one):
    dcp.save(state_of(0), checkpoint_id=tmp_path / "torch", use_collectives=False, no_dist=True)
    assert sorted(file.name for file in (tmp_path / "torch").iterdir()) == [
        "__0.metadata",
        "__0_0.distcp",
    ]
    assert sorted(file.name for file in one.iterdir()) == ["__0.metadata", "__0_0.distcp"]


# ------------------------------------------------------------------------------ loads


def torchs(state, folder, **keywords):
    reader = ParallelFileSystemReader(folder, **keywords)
    dcp.load(state, storage_reader=reader, no_dist=True)


def ours(state, folder, **keywords):
    paraload.load(state, folder, no_dist=True, **keywords)


@pytest.mark.parametrize("load", [torchs, ours])
@pytest.mark.parametrize("keywords", [{}, PROCESSES])
def test_a_load_finds_the_rank_s_own_and_waits_for_nothing(one, monkeypatch, load, keywords):
    waits = []
    monkeypatch.setattr("paraload.sources.retrying.time.sleep", waits.append)
    if keywords:  # its start waits for workers
        monkeypatch.undo()
    state = blank(0)
    load(state, one, **keywords)
    assert same(state, 0)
    assert waits == []


@pytest.mark.parametrize("replaced", [False, True])
def test_the_file_for_all_is_looked_for_once(one, replaced):
    reader = ParallelFileSystemReader(one)
    if replaced:
        reader.fs = type("Other", (FileSystem,), {})()
    started = time.monotonic()
    with pytest.raises(MissingMetadataError):
        reader.read_metadata()
    assert time.monotonic() - started < 0.3
    assert reader.read_metadata(rank=0).state_dict_metadata.keys() == {"w", "big", "n.step"}


def test_without_any_it_is_looked_for_again(tmp_path):
    started = time.monotonic()
    with pytest.raises(MissingMetadataError, match="incomplete"):
        ParallelFileSystemReader(tmp_path).read_metadata()
    assert time.monotonic() - started > 0.17  # three pauses, of which half is random


def test_a_listed_file_that_is_missing_for_a_moment_is_looked_for_again(one, monkeypatch):
    """Otherwise a load would silently take what one rank saved earlier."""
    dcp.save({"w": torch.ones(5)}, checkpoint_id=one, no_dist=True)
    real, misses = LocalSource.stat, [FileNotFoundError(2, "not yet")] * 2

    def late(self, path):
        if misses and path.endswith("/.metadata"):
            raise misses.pop()
        return real(self, path)

    monkeypatch.setattr(LocalSource, "stat", late)
    state = {"w": torch.zeros(5)}
    paraload.load(state, one, no_dist=True)
    assert (state["w"].tolist(), misses) == ([1.0] * 5, [])


def test_the_one_for_all_wins(one):
    dcp.save({"w": torch.ones(5)}, checkpoint_id=one, no_dist=True)
    expected, state = ({"w": torch.zeros(5)} for _ in range(2))
    dcp.load(expected, storage_reader=FileSystemReader(one), no_dist=True)
    paraload.load(state, one, no_dist=True)
    assert state["w"].tolist() == expected["w"].tolist() == [1.0] * 5
    found = folder_metadata(one)
    assert (found.files, found.ranks, found.missing) == ((".metadata",), (), ())
    assert list(found.metadata.state_dict_metadata) == ["w"]
    assert paraload.verify(one).tensors == 1


def test_a_damaged_global_metadata_is_reported_and_that_of_the_rank_is_read(one, caplog):
    (one / ".metadata").write_bytes(b"")
    state = blank(0)
    paraload.load(state, one, no_dist=True)
    assert same(state, 0)
    [warning] = [it for it in caplog.records if it.levelno >= logging.WARNING]
    assert "is empty" in warning.message
    assert "rank 0 instead" in warning.message
    with pytest.raises(MetadataError, match=r"/\.metadata: is empty"):
        paraload.verify(one)


def test_one_for_all_that_asks_for_code_is_refused(one):
    (one / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(UnsafeMetadataError):
        paraload.load(blank(0), one, no_dist=True)


def test_a_missing_own_one_names_both_files(tmp_path):
    folder = save(tmp_path, 1, 3)
    with pytest.raises(MissingMetadataError) as caught:
        paraload.load(blank(0), folder, no_dist=True)
    for words in ("__0.metadata", "'.metadata'", "ranks 1, 3 have separate metadata"):
        assert words in str(caught.value)
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value)
    with pytest.raises(CheckpointException) as caught:
        torchs(blank(0), folder)
    for words in ("/.metadata: no such file", "/__0.metadata: no such file", "ranks 1, 3"):
        assert (words in str(caught.value)) is not HIDES_METADATA_ERRORS


# ------------------------------------------------------------------------------ two ranks


def save_and_load(folder):
    rank = dist.get_rank()
    dcp.save(state_of(rank), checkpoint_id=f"{folder}/ckpt", use_collectives=False)
    dist.barrier()
    answers = []
    for keywords in ({}, PROCESSES):
        mine, torch_s = blank(rank), blank(rank)
        paraload.load(mine, f"{folder}/ckpt", **keywords)
        reader = ParallelFileSystemReader(f"{folder}/ckpt", **keywords)
        dcp.load(torch_s, storage_reader=reader)
        answers += [same(mine, rank), same(torch_s, rank)]
    return answers


def fail_on_one_rank(folder):
    rank = dist.get_rank()
    try:
        paraload.load(blank(rank), f"{folder}/ckpt")
    except CheckpointException as error:
        return {str(rank): str(raised) for rank, (raised, _) in error.failures.items()}
    return None


@OWN_METADATA.needed
def test_each_of_two_ranks_loads_its_own(tmp_path):
    assert run_ranks(save_and_load, tmp_path) == [[True] * 4] * 2


def test_a_missing_own_one_ends_the_load_on_all_ranks(tmp_path):
    save(tmp_path / "ckpt", 0)
    for error in run_ranks(fail_on_one_rank, tmp_path):
        assert list(error) == ["1"]
        assert "__1.metadata: no such file, and no '.metadata'; only rank 0" in error["1"]


def test_damage_in_the_part_of_one_rank_ends_the_load_on_all_ranks(tmp_path):
    save(tmp_path / "ckpt", 0, 1)
    file = tmp_path / "ckpt" / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:500])
    for error in run_ranks(fail_on_one_rank, tmp_path):
        assert list(error) == ["1"]
        assert "__1_0.distcp" in error["1"]


# ------------------------------------------------------------------------------ tools


def call(capsys, *argv):
    status = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


def test_tools_take_the_names_of_one_rank_as_they_are(one, capsys):
    report = paraload.verify(one)
    assert (report.ok, report.tensors, report.objects, report.remarks) == (True, 2, 1, ())
    status, out, _ = call(capsys, "inspect", one, "--json", "-")
    assert status == 0
    assert [entry["name"] for entry in json.loads(out)["entries"]] == ["big", "n.step", "w"]
    assert call(capsys, "verify", one)[0] == 0
    assert "loaded 3 items" in call(capsys, "load", one)[1]


def test_tools_distinguish_the_ranks(two, capsys):
    report = paraload.verify(two)
    assert (report.ok, report.tensors, report.objects, report.records) == (True, 4, 2, 6)
    assert (report.files, report.remarks) == (2, ())
    status, out, _ = call(capsys, "inspect", two, "--json", "-")
    found = json.loads(out)
    assert (status, found["problems"]) == (0, [])
    shapes = {entry["name"]: entry["shape"] for entry in found["entries"]}
    assert (shapes["rank 0: w"], shapes["rank 1: w"]) == ([5], [6])
    for executor in ("threads", "processes"):
        status, out, _ = call(capsys, "load", two, "--executor", executor, "--json", "-")
        assert (status, json.loads(out)["report"]["items"]) == (0, 6)
    words = ["bench", two, "--rounds", 1, "--workers", 1, "--executors", "threads", "--no-cold"]
    assert call(capsys, *words)[0] == 0


def test_tools_name_the_rank_of_a_damaged_tensor(two, capsys):
    file = two / "__1_0.distcp"
    data = bytearray(file.read_bytes())
    at = data.index(torch.tensor([100.0, 101.0]).numpy().tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    [problem] = paraload.verify(two).problems
    assert [part.name for part in problem.parts] == ["rank 1: w"]
    status, _, err = call(capsys, "load", two)
    assert (status, "'rank 1: w'" in err) == (1, True)


@pytest.mark.parametrize(
    ("ranks", "removed", "missing"),
    [((0, 2), (), [1]), ((0, 1, 2), (2,), [2]), ((0, 1, 4), (), [2, 3]), ((1, 2), (), [])],
)
def test_a_rank_that_is_missing_is_a_problem(tmp_path, capsys, ranks, removed, missing):
    folder = save(tmp_path, *ranks)
    for rank in removed:  # its tensors are there
        (folder / f"__{rank}.metadata").unlink()
    report = paraload.verify(folder)
    assert [it.path for it in report.problems] == [f"__{rank}.metadata" for rank in missing]
    status, _, err = call(capsys, "inspect", folder)
    assert status == (1 if missing else 0)
    for rank in missing:
        assert f"__{rank}.metadata: the metadata of this rank is missing" in err


def test_ranks_below_the_first_one_are_a_remark(tmp_path, capsys):
    """Each machine may save to a disk of its own."""
    folder = save(tmp_path, 2, 3)
    report = paraload.verify(folder)
    assert report.ok
    assert ["ranks 0 to 1 have no metadata here" in it.problem for it in report.remarks] == [True]
    status, _, err = call(capsys, "inspect", folder)
    assert (status, "ranks 0 to 1 have no metadata here" in err) == (0, True)


def test_a_stray_file_with_a_huge_number_makes_no_huge_list(one):
    (one / "__999999999.metadata").write_bytes((one / "__0.metadata").read_bytes())
    (one / "__007.metadata").write_bytes(b"not torch's spelling")
    found = folder_metadata(one)
    assert (found.ranks, len(found.missing)) == ((0, 999_999_999), 1000)


def test_metadata_without_byte_ranges_is_an_error_of_the_tools(one, capsys):
    made = metadata.read_metadata(one / "__0.metadata")
    info = storage_info_of_hugging_face()
    for storage in (None, dict.fromkeys(made.storage_data, info)):
        made.storage_data = storage
        (one / "__0.metadata").write_bytes(pickle.dumps(made))
        for command in ("inspect", "verify", "load", "bench"):
            status, _, err = call(capsys, command, one)
            assert (status, "__0.metadata: " in err) == (1, True)
        with pytest.raises(MetadataError, match=r"__0\.metadata: (does not say|describes)"):
            paraload.verify(one)


def test_a_damaged_own_one_is_an_error_of_the_tools(two, capsys):
    (two / "__1.metadata").write_bytes(b"\x80\x04")
    with pytest.raises(MetadataError, match=r"__1\.metadata: cannot be unpickled"):
        paraload.verify(two)
    for command in ("inspect", "verify", "load"):
        status, _, err = call(capsys, command, two)
        assert (status, "__1.metadata" in err) == (1, True)
