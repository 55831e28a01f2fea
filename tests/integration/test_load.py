"""``paraload.load`` does what ``dcp.load`` does: objects, planners, ranks."""

from __future__ import annotations

import gc
import logging
import pickle
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

import paraload
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.errors import (
    CheckpointReadError,
    MetadataError,
    MissingMetadataError,
    UnsafeMetadataError,
)
from paraload.metadata import reading as metadata
from tests.integration import support
from tests.integration.ranks import run_ranks


class Counter:
    """A ``Stateful`` that says what was done to it."""

    def __init__(self, value):
        self.value = torch.tensor([value])
        self.calls = []

    def state_dict(self):
        self.calls.append(("state_dict", gc.isenabled()))
        return {"value": self.value.clone(), "text": "x"}

    def load_state_dict(self, state_dict):
        self.calls.append(("load_state_dict", gc.isenabled()))
        self.value, self.text = state_dict["value"], state_dict["text"]


class HalfStateful:
    """Has one of the two methods; an object like any other."""

    def state_dict(self):
        raise AssertionError


def full():
    return {
        "counter": Counter(7),
        "module": torch.nn.Linear(3, 2),
        "nested": {"w": torch.arange(6.0), "list": [torch.ones(2), {"x": 3}]},
        "plain": torch.arange(4),
        "step": 12,
    }


def blank():
    state = full()
    state["counter"] = Counter(0)
    state["nested"] = {"w": torch.zeros(6), "list": [torch.zeros(2), {"x": None}]}
    return {**state, "module": torch.nn.Linear(3, 2), "plain": torch.zeros(4).long(), "step": 0}


def flat(state):
    return {
        "counter": state["counter"].value.tolist(),
        "module": [parameter.tolist() for parameter in state["module"].parameters()],
        "nested": [state["nested"]["w"].tolist(), state["nested"]["list"][0].tolist()],
        "x": state["nested"]["list"][1]["x"],
        "plain": state["plain"].tolist(),
        "step": state["step"],
    }


@pytest.fixture
def folder(tmp_path):
    state = full()
    dcp.save(state, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    return tmp_path / "ckpt", state


def test_state_dicts_with_everything_in_them(folder):
    path, state = folder
    expected, got = blank(), blank()
    dcp.load(expected, storage_reader=FileSystemReader(path), no_dist=True)
    before = {name: value for name, value in got.items() if isinstance(value, torch.Tensor)}
    paraload.load(got, path, no_dist=True)
    assert flat(got) == flat(expected) == flat(state)
    assert all(got[name] is value for name, value in before.items())
    assert got["counter"].calls == [("state_dict", True), ("load_state_dict", True)]
    assert got["counter"].text == "x"


def test_what_is_only_half_stateful_is_an_object(tmp_path):
    dcp.save({"a": 3}, checkpoint_id=tmp_path, no_dist=True)
    state = {"a": HalfStateful()}
    paraload.load(state, tmp_path, no_dist=True)
    assert state == {"a": 3}


def test_planners_are_taken_as_given(folder):
    path, _ = folder
    seen = []

    class Planner(DefaultLoadPlanner):
        def create_local_plan(self):
            seen.append(gc.isenabled())
            return super().create_local_plan()

    got = {"plain": torch.zeros(4).long()}
    paraload.load(got, path, planner=Planner(), no_dist=True)
    assert seen == [False]
    assert torch.equal(got["plain"], torch.arange(4))


def test_the_planner_of_its_own_is_torch_s_but_for_its_plans(folder, monkeypatch):
    path, _ = folder
    planners = []
    true_plan = QuickLoadPlanner.create_local_plan
    monkeypatch.setattr(
        QuickLoadPlanner,
        "create_local_plan",
        lambda planner: planners.append(planner) or true_plan(planner),
    )
    paraload.load({"plain": torch.zeros(4).long()}, path, no_dist=True)
    (planner,) = planners
    assert isinstance(planner, DefaultLoadPlanner)
    with pytest.raises(RuntimeError, match="Missing key in checkpoint state_dict: new"):
        paraload.load({"new": torch.zeros(4)}, path, no_dist=True)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_is_as_it_was_and_pauses_only_for_plans(folder, monkeypatch, is_on, fails):
    path, _ = folder
    seen = []
    true_read = paraload.ParallelFileSystemReader.read_data

    def read(reader, plan, planner):
        seen.append(gc.isenabled())
        if fails:
            raise KeyError("broken")
        return true_read(reader, plan, planner)

    monkeypatch.setattr(paraload.ParallelFileSystemReader, "read_data", read)
    (gc.enable if is_on else gc.disable)()
    try:
        state = {"plain": torch.zeros(4).long()}
        if fails:
            with pytest.raises(KeyError, match="broken"):
                paraload.load(state, path, no_dist=True)
        else:
            paraload.load(state, path, no_dist=True)
        assert gc.isenabled() is is_on
        assert seen == [is_on]
    finally:
        gc.enable()


# ------------------------------------------------------------------------------ bad metadata


def make_unsafe(path):
    path.write_bytes(b"\x80\x04cos\nsystem\n.")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda path: path.unlink(), MissingMetadataError),
        (lambda path: path.write_bytes(b""), MetadataError),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), MetadataError),
        (make_unsafe, UnsafeMetadataError),
    ],
)
def test_a_metadata_error_arrives_unchanged(folder, caplog, damage, kind):
    path, _ = folder
    damage(path / ".metadata")
    with pytest.raises(kind, match=str(path)) as caught:
        paraload.load({"plain": torch.zeros(4)}, path, no_dist=True)
    assert type(caught.value) is kind
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert loud == []  # torch would log two tracebacks


def test_metadata_of_the_rank_alone_is_what_torch_falls_back_to(folder):
    path, _ = folder
    (path / ".metadata").rename(path / "__0.metadata")
    state = {"plain": torch.zeros(4).long()}
    paraload.load(state, path, no_dist=True)
    assert torch.equal(state["plain"], torch.arange(4))
    (path / "__0.metadata").write_bytes(b"")
    with pytest.raises(MetadataError, match=r"__0\.metadata: is empty"):
        paraload.load(state, path, no_dist=True)


# ------------------------------------------------------------------------------ several ranks


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, rank = init_device_mesh("cpu", (dist.get_world_size(),)), dist.get_rank()
    return {
        "rows": DTensor.from_local(torch.full((2, 3), float(rank)), mesh, [Shard(0)]),
        "same": DTensor.from_local(torch.arange(4.0), mesh, [Replicate()]),
        "plain": torch.arange(5),
        "step": 7,
    }


def load_sharded(folder):
    dcp.save(sharded(), checkpoint_id=f"{folder}/ckpt")
    state = sharded()
    for name in ("rows", "same"):
        state[name].to_local().fill_(-1)
    state |= {"plain": torch.zeros(5).long(), "step": 0}
    plans = []
    for kind in (DefaultLoadPlanner, QuickLoadPlanner):
        planner = kind()
        planner.set_up_planner(
            dict(state), metadata.read_metadata(f"{folder}/ckpt/.metadata"), dist.get_rank() == 0
        )
        plans.append(planner.create_local_plan())
    report = paraload.load(state, f"{folder}/ckpt")
    return {
        "rows": state["rows"].to_local().tolist(),
        "same": state["same"].to_local().tolist(),
        "plain": state["plain"].tolist(),
        "step": state["step"],
        "items": report.items,
        "same plan": plans[0] == plans[1],
    }


def test_ranks_load_their_shards(tmp_path):
    for rank, answer in enumerate(run_ranks(load_sharded, tmp_path)):
        assert answer == {
            "rows": [[rank] * 3] * 2,
            "same": [0, 1, 2, 3],
            "plain": [0, 1, 2, 3, 4],
            "step": 7,
            "items": 4,
            "same plan": True,
        }


def fail_everywhere(folder):
    answers = {}
    for name in ("missing", "cut", "one rank"):
        path = f"{folder}/{name}"
        if name == "one rank" and dist.get_rank() == 1:
            path += " that is not there"
        try:
            paraload.load({"a": torch.zeros(3)}, path)
        except CheckpointException as error:
            back = pickle.loads(pickle.dumps(error))
            answers[name] = {
                str(rank): [type(raised).__name__, str(raised)]
                for rank, (raised, _) in back.failures.items()
            }
    return answers


def test_metadata_errors_of_all_ranks_arrive_on_all_ranks(tmp_path):
    (tmp_path / "missing").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/.metadata").write_bytes(b"\x80\x04")
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "one rank", no_dist=True)
    first, second = run_ranks(fail_everywhere, tmp_path)
    assert first == second
    assert {rank: kind for rank, (kind, _) in first["missing"].items()} == dict.fromkeys(
        ("0", "1"), "MissingMetadataError"
    )
    assert {rank: kind for rank, (kind, _) in first["cut"].items()} == dict.fromkeys(
        ("0", "1"), "MetadataError"
    )
    assert list(first["one rank"]) == ["1"]
    assert "one rank that is not there/.metadata: no such file" in first["one rank"]["1"][1]


def test_a_state_dict_of_a_model_round_trips(tmp_path):
    state = support.example_state()
    support.save(tmp_path, state)
    got = support.empty_like(state)
    paraload.load(got, tmp_path, no_dist=True)
    support.assert_same(got, state)


def fail_for_400_items(folder):
    state = {f"w{n}": torch.zeros(2) for n in range(400)}
    try:
        paraload.load(state, f"{folder}/ckpt")
    except CheckpointException as error:
        return traceback.format_exception(error)


def test_a_missing_file_is_a_few_lines_on_every_rank(tmp_path):
    state = {f"w{n}": torch.zeros(2) for n in range(400)}
    dcp.save(state, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    (tmp_path / "ckpt/__0_0.distcp").unlink()
    for answer in run_ranks(fail_for_400_items, tmp_path):
        lines = "".join(answer).splitlines()
        assert len(lines) <= 12, answer
        causes = [
            line for line in lines if "file is missing (file '__0_0.distcp', 400 items" in line
        ]
        assert len(causes) == 1


def test_a_missing_file_is_a_few_lines_without_ranks(tmp_path):
    state = {f"w{n}": torch.zeros(2) for n in range(400)}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load(state, tmp_path, no_dist=True)
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) <= 10
