"""Failures of loads on several ranks: one error on all of them, with one text."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time
import traceback
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import paraload
from paraload._text import ranks_text
from paraload.adapters.dcp.load import _plans_alone
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.adapters.dcp.rank_errors import RanksReadError, ranks_error
from paraload.errors import (
    CheckpointReadError,
    InvalidOptionError,
    MetadataError,
    MissingFileError,
    MissingKeyError,
    refuse_to_begin,
    summarize,
)
from tests.integration.ranks import run_ranks

MOST_LINES = 12
#: Of the processor: the clock of a busy machine says nothing of this program. A rank that waits
#: for another one without end runs into the time-out of ``run_ranks``.
MOST_SECONDS = 3


def sharded(tensors=400):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ones = torch.full((2, 3), float(dist.get_rank()))
    return {
        f"w{n}": DTensor.from_local(ones.clone(), mesh, [Shard(0)], run_check=False)
        for n in range(tensors)
    }


def failed(load):
    """What a rank sees of a load that fails, with ``except`` as in a program."""
    started = time.process_time()
    try:
        load()
    except CheckpointReadError as error:
        seconds = time.process_time() - started
        back = pickle.loads(pickle.dumps(error))
        return {
            "is torch's too": isinstance(error, CheckpointException),
            "pickles": (str(back), [*back.by_rank]) == (str(error), [*error.by_rank]),
            "seconds": seconds,
            "lines": "".join(traceback.format_exception(error)).splitlines(),
            "text": str(error),
            "ranks": {str(rank): type(it).__name__ for rank, it in error.by_rank.items()},
            "failures": [[type(it).__name__, it.fqn, it.ranks] for it in error.failures],
            "nothing was read": error.nothing_was_read,
        }


def run_all(folder):
    steps = [lose_a_file_of_one_rank, lose_the_file_of_all]
    if dist.get_world_size() == 2:
        steps += [ask_for_what_is_not_there, lose_metadata_of_one_rank]
        steps += [give_one_rank_a_wrong_option, give_one_rank_a_wrong_storage_option]
        steps += [give_one_rank_no_path, plan_for_all_ranks, interrupt_one_rank]
    return {step.__name__: step(folder) for step in steps}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks saw of a step."""
    ran = run_ranks(run_all, tmp_path_factory.mktemp("ranks"))
    return lambda step: [of_rank[step] for of_rank in ran]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    ran = run_ranks(run_all, tmp_path_factory.mktemp("ranks"), world=4)
    return lambda step: [of_rank[step] for of_rank in ran]


@pytest.fixture(params=["two", "four"])
def answers(request):
    return request.getfixturevalue(request.param)


def lose_a_file_of_one_rank(folder):
    folder = f"{folder}/one"
    dcp.save(sharded(), checkpoint_id=f"{folder}/ckpt")
    if dist.get_rank() == 0:
        Path(folder, "ckpt/__1_0.distcp").unlink()
    state = sharded()
    dist.barrier()
    return failed(lambda: paraload.load(state, f"{folder}/ckpt"))


def test_a_file_that_is_missing_for_one_rank_is_an_error_on_all(answers):
    answers = answers("lose_a_file_of_one_rank")
    world = len(answers)
    assert len({answer["text"] for answer in answers}) == 1
    for answer in answers:
        assert answer["seconds"] < MOST_SECONDS
        assert answer["is torch's too"]
        assert answer["pickles"]
        assert len(answer["lines"]) <= MOST_LINES, answer["lines"]
        head, line = answer["text"].splitlines()
        assert head.startswith(f"rank 1 of {world} could not load the checkpoint ")
        assert "must not be used" in head  # the other ranks have read theirs
        assert not answer["nothing was read"]
        assert "MissingFileError: file is missing (file '__1_0.distcp', 400 items: 'w0'," in line
        assert answer["ranks"] == {"1": "CheckpointReadError"}
        assert len(answer["failures"]) == 400
        assert answer["failures"][0] == ["MissingFileError", "w0", [1]]


def lose_the_file_of_all(folder):
    folder = f"{folder}/all"
    state = {f"w{n}": torch.zeros(2) for n in range(400)}
    if dist.get_rank() == 0:
        dcp.save(state, checkpoint_id=f"{folder}/ckpt", no_dist=True)
        Path(folder, "ckpt/__0_0.distcp").unlink()
    dist.barrier()
    return failed(lambda: paraload.load(state, f"{folder}/ckpt"))


def test_the_same_failure_of_all_ranks_is_told_once(answers):
    for answer in (all_answers := answers("lose_the_file_of_all")):
        ranks = list(range(len(all_answers)))
        assert len(answer["lines"]) <= MOST_LINES, answer["lines"]
        head, line = answer["text"].splitlines()
        assert head.startswith(f"ranks 0-{ranks[-1]} could not load the checkpoint ")
        assert head.endswith("; nothing was read, and the targets are as they were:")
        assert line.startswith("  - MissingFileError: file is missing (file '__0_0.distcp', 400 i")
        assert answer["failures"][0] == ["MissingFileError", "w0", ranks]
        assert answer["nothing was read"]


def ask_for_what_is_not_there(folder):
    folder = f"{folder}/fit"
    rank = dist.get_rank()
    if rank == 0:
        saved = {"m": {"w": torch.ones(4), "b": torch.ones(2)}, "n": torch.ones(3), "t": 1.0}
        dcp.save(saved, checkpoint_id=f"{folder}/ckpt", no_dist=True)
    dist.barrier()
    wrong = {"w": torch.zeros(4), "b": torch.zeros(2), "n": torch.zeros(3)}
    if rank == 1:
        wrong |= {"n": torch.zeros(5), "m": {"w": "text"}}
    answer = failed(lambda: paraload.load(wrong, f"{folder}/ckpt"))
    return answer | {"sums": [float(wrong[name].sum()) for name in "wb"]}


def test_all_that_does_not_fit_is_named_on_all_ranks_before_the_first_byte(two):
    for answer in two("ask_for_what_is_not_there"):
        assert sorted(answer["failures"]) == [
            ["KindMismatchError", "m.w", [1]],
            ["MissingKeyError", "b", [0, 1]],
            ["MissingKeyError", "w", [0, 1]],
            ["ShapeMismatchError", "n", [1]],
        ]
        head, *lines = answer["text"].splitlines()
        assert head.startswith("ranks 0-1 could not load the checkpoint ")
        assert head.endswith("; nothing was read, and the targets are as they were:")
        assert sum(line.startswith("  - rank 1: ") for line in lines) == 2
        assert sum(line.startswith("  - MissingKeyError: ") for line in lines) == 2
        assert "'m.' in front" in answer["text"]
        assert answer["text"].count("allow_partial_load=True") == 1
        assert answer["sums"] == [0, 0]


def lose_metadata_of_one_rank(folder):
    folder = f"{folder}/metadata"
    dcp.save(sharded(3), checkpoint_id=f"{folder}/ckpt")
    dist.barrier()
    path = f"{folder}/ckpt" if dist.get_rank() else f"{folder}/elsewhere"
    return failed(lambda: paraload.load(sharded(3), path))


def test_metadata_that_one_rank_misses_end_the_load_of_all(two):
    for answer in two("lose_metadata_of_one_rank"):
        assert answer["ranks"] == {"0": "MissingMetadataError"}
        assert len(answer["lines"]) <= MOST_LINES, answer["lines"]
        assert "elsewhere/.metadata: no such file" in answer["text"]
        assert answer["nothing was read"]


def give_one_rank_a_wrong_option(folder):
    with patch.dict(os.environ, {"PARALOAD_MAX_WORKERS": "many" if dist.get_rank() else "2"}):
        try:
            paraload.load({"n": torch.zeros(3)}, f"{folder}/fit/ckpt")
        except (InvalidOptionError, CheckpointException) as error:
            return [type(error).__name__, "PARALOAD_MAX_WORKERS" in str(error)]


def test_a_wrong_option_of_one_rank_does_not_leave_the_others_waiting(two):
    assert two("give_one_rank_a_wrong_option") == [
        ["CheckpointException", True],
        ["InvalidOptionError", True],
    ]


def give_one_rank_no_path(folder):
    """As after a search for the newest checkpoint on rank 0 alone."""
    path = None if dist.get_rank() else f"{folder}/fit/ckpt"
    try:
        paraload.load({"n": torch.zeros(3)}, path)
    except (CheckpointException, InvalidOptionError) as error:
        raised = [it for it, _ in getattr(error, "failures", {}).values()] or [error]
        return [type(error).__name__, *map(str, raised)]


def test_a_path_that_one_rank_lacks_does_not_leave_the_others_waiting(two):
    what = "path: expected a path or URL, got a NoneType"
    assert two("give_one_rank_no_path") == [
        ["CheckpointException", what],
        ["InvalidOptionError", what],
    ]


def give_one_rank_a_wrong_storage_option(folder):
    url = "http://me:secret@127.0.0.1:1/model.safetensors?sig=secret"
    wrong = {"no_such_option": 1} if dist.get_rank() else {}
    return failed(lambda: paraload.load({"n": torch.zeros(3)}, url, retries=0, **wrong))


def test_a_wrong_storage_option_of_one_rank_does_not_leave_the_others_waiting(two):
    for answer in two("give_one_rank_a_wrong_storage_option"):
        assert answer["ranks"]["1"] == "InvalidOptionError"
        assert "secret" not in answer["text"]


class GlobalPlanner(dcp.DefaultLoadPlanner):
    def create_global_plan(self, global_plan):
        return [dataclasses.replace(plan, planner_data="seen") for plan in global_plan]

    def finish_plan(self, central_plan):
        assert central_plan.planner_data == "seen"
        return central_plan


def plan_for_all_ranks(folder):
    path = f"{folder}/fit/ckpt"
    for planner in (GlobalPlanner(), dcp.DefaultLoadPlanner(), paraload.SafeLoadPlanner(), None):
        state = {"n": torch.zeros(3)}
        paraload.load(state, path, planner=planner)
        assert state["n"].tolist() == [1, 1, 1]
        assert planner is None or "create_global_plan" not in vars(planner)
    planner = None if dist.get_rank() else GlobalPlanner()
    try:
        paraload.load({"n": torch.zeros(3)}, path, planner=planner)
    except (InvalidOptionError, CheckpointException) as error:
        return [type(error).__name__, "pass it on all" in str(error)]


def test_a_planner_that_plans_for_all_ranks_gets_all_plans_or_is_an_error(two):
    assert two("plan_for_all_ranks") == [
        ["InvalidOptionError", True],
        ["CheckpointException", True],
    ]


def interrupt_one_rank(folder):
    class Planner(dcp.DefaultLoadPlanner):
        def finish_plan(self, plan):
            if dist.get_rank():
                raise KeyboardInterrupt
            return super().finish_plan(plan)

    try:
        paraload.load({"n": torch.zeros(3)}, f"{folder}/fit/ckpt", planner=Planner())
    except Exception as error:  # noqa: BLE001 - must not catch it
        return repr(error)
    except BaseException as error:  # noqa: BLE001
        return type(error).__name__


def test_an_interrupt_is_no_error_of_reading(two):
    assert two("interrupt_one_rank") == ["CheckpointException", "KeyboardInterrupt"]


@pytest.mark.parametrize(
    ("planner", "alone"),
    [
        (QuickLoadPlanner(), True),
        (dcp.DefaultLoadPlanner(), True),
        (paraload.SafeLoadPlanner(), True),
        (GlobalPlanner(), False),
        (type("Finishing", (QuickLoadPlanner,), {"finish_plan": lambda self, plan: plan})(), False),
    ],
)
def test_only_planners_without_steps_of_their_own_keep_their_plans(planner, alone):
    assert _plans_alone(planner) is alone
    planner.create_global_plan = lambda plans: plans
    assert not _plans_alone(planner)


# ------------------------------------------------------------------------- the text, without ranks


def of_ranks(errors, *, world, before_reading=False):
    by_rank = {rank: (error, traceback.StackSummary()) for rank, error in errors.items()}
    return ranks_error(by_rank, path="ckpt", world=world, before_reading=before_reading)


def missing(rank, items):
    found = [
        MissingFileError("file is missing", fqn=f"w{n}", path="a", start=n, end=n + 1)
        for n in range(rank * items, rank * items + items)
    ]
    return refuse_to_begin(found, items=items, path="ckpt")


def test_many_ranks_are_as_short_as_two():
    error = of_ranks({rank: missing(rank, 10) for rank in range(512)}, world=512)
    head, line = str(error).splitlines()
    assert head.startswith("ranks 0-511 could not load the checkpoint 'ckpt'; nothing was read")
    assert "file 'a', 5120 items: 'w0', 'w1', 'w2' and 5117 more" in line
    assert len(error.failures) == 5120
    assert isinstance(error.by_rank[511], CheckpointReadError)


def test_a_rank_that_has_begun_means_that_targets_are_partly_filled():
    begun = summarize([MissingKeyError("gone", fqn="w")], items=1, path="ckpt")
    for errors, world, untouched in (
        ({0: missing(0, 1), 1: missing(1, 1)}, 2, True),
        ({0: missing(0, 1), 1: missing(1, 1)}, 3, False),
        ({0: missing(0, 1), 1: begun}, 2, False),
        ({0: missing(0, 1), 1: MetadataError("cut", "ckpt")}, 2, True),
    ):
        error = of_ranks(errors, world=world)
        assert error.nothing_was_read is untouched
        assert ("must not be used" in str(error)) is not untouched


def test_errors_without_items_are_told_once_and_are_few():
    same = of_ranks({rank: MetadataError("cut", "ckpt") for rank in range(9)}, world=9)
    assert str(same).splitlines()[1:] == ["  - MetadataError: ckpt: cut"]
    others = of_ranks({rank: MetadataError(f"cut {rank}", "ckpt") for rank in range(40)}, world=40)
    lines = str(others).splitlines()
    assert lines[1] == "  - rank 0: MetadataError: ckpt: cut 0"
    assert lines[-1] == "  - and 30 other errors; this error's `by_rank` has all"
    assert len(lines) == 12


def test_notes_are_those_of_one_rank():
    errors = {rank: missing(rank, 1) for rank in range(3)}
    errors[1].add_note("worker's traceback")
    errors[2].add_note("another one")
    assert of_ranks(errors, world=3).__notes__ == ["worker's traceback"]


def test_it_has_the_failures_of_both_of_its_classes():
    error = of_ranks({1: missing(0, 2)}, world=2)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is RanksReadError
    for it in (error, back):
        assert [failure.fqn for failure in it.failures] == ["w0", "w1"]
        assert [failure.ranks for failure in it.failures] == [(1,), (1,)]
        ((rank, (raised, _)),) = it.failures.items()
        assert (rank, str(raised)) == (1, str(missing(0, 2)))
        assert list(it.failures.keys()) == [1]
        assert [raised for raised, _ in it.failures.values()] == [it.by_rank[1]]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([1, 0], "ranks 0-1"), ([5, 0, 2, 3, 5], "ranks 0, 2-3, 5")],
)
def test_ranks_in_words(ranks, text):
    assert ranks_text(ranks) == text
