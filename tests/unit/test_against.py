"""``benchmarks.against``: the table, the exit status, and a comparison from end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from benchmarks import against
from benchmarks.against import Comparison, table_of, verdict

REPOSITORY = Path(__file__).parents[2]

needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (REPOSITORY / ".git").exists(), reason="no git repository"
)

FASTER = Comparison(name="faster", old=[[3.0, 3.0, 9.0], [2.0]], new=[[1.0, 1.0, 1.0], [2.0]])
AS_FAST = Comparison(name="as fast", old=[[0.95]], new=[[1.0]])
SLOWER = Comparison(name="slower", old=[[1.0], [0.9]], new=[[1.0], [1.0]], at_least=0.96)
FOURFOLD = Comparison(name="fourfold", old=[[3.9]], new=[[1.0]], at_least=4.0)
SHOWN = Comparison(name="shown", old=[[0.1]], new=[[1.0]], at_least=None)


def worktrees():
    command = ["git", "-C", str(REPOSITORY), "worktree", "list"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# ------------------------------------------------------------------------------------- the table


def test_the_ratio_is_of_medians_of_all_loads_and_the_spread_is_of_paired_rounds():
    table = table_of([FASTER, SLOWER, SHOWN], "the title")
    assert table.title == "the title"
    assert table.rows == (
        ("faster", "3.000", "1.000", "3.00", "1.00..3.00", "0.95"),
        ("slower", "0.950", "1.000", "0.95", "0.90..1.00", "0.96"),
        ("shown", "0.100", "1.000", "0.10", "0.10..0.10", ""),
    )


def test_the_verdict_names_what_is_below_its_limit():
    every = [FASTER, AS_FAST, SLOWER, FOURFOLD, SHOWN]
    assert verdict(every) == "below its limit: slower (0.950), fourfold (3.900)"
    assert verdict([FASTER, AS_FAST, SHOWN]) == "no case is below its limit"


@needs_git
@pytest.mark.parametrize(
    ("comparisons", "status"),
    [([FASTER, AS_FAST, SHOWN], 0), ([FASTER, SLOWER], 1), ([FOURFOLD], 1)],
)
def test_the_exit_status_is_1_when_a_case_is_below_its_limit(
    comparisons, status, monkeypatch, capsys
):
    monkeypatch.setattr(against, "_measure", lambda _: comparisons)
    assert against.main(["--rev", "HEAD", "--json", "-"]) == status
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == verdict(comparisons)
    cases = json.loads(printed.out)["cases"]
    assert [case["old_seconds"] for case in cases] == [one.old for one in comparisons]


# --------------------------------------------------------------------------------- the comparison


@needs_git
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --rev"),
        (["--rev", "no-such-revision"], "git knows no commit 'no-such-revision'"),
        (["--rev", "--all"], "expected one argument"),
        (["--rev", "HEAD", "--cases", "big,nothing"], "'nothing' is none of big, one-file, "),
        (["--rev", "HEAD", "--rounds", "0"], "'0' is not a number of rounds"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_measured(
    arguments, message, monkeypatch, capsys
):
    monkeypatch.setattr(against, "_measure", pytest.fail)
    with pytest.raises(SystemExit) as caught:
        against.main(arguments)
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@needs_git
def test_a_revision_is_compared_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    figures, folder = tmp_path / "figures.json", tmp_path / "folder"
    folder.mkdir()
    cases = ["--cases", "big,rows,metadata,verify", "--rounds", "1", "--tiny"]
    status = against.main(["--rev", "HEAD", *cases, "--folder", "folder", "--json", str(figures)])
    assert status in {0, 1}  # so small, they scatter
    assert list(folder.iterdir()) == []
    assert str(folder) not in worktrees()
    out = capsys.readouterr().out
    written = json.loads(figures.read_text())["cases"]
    assert [case["name"] for case in written] == [
        "big tensors, 8 files",
        "row slices",
        "first metadata of 50,000",
        "first metadata, torch as old",
        "verify, big tensors",
    ]
    for case in written:
        assert f"| {case['name']} " in out
        for side in ("old_seconds", "new_seconds"):
            (turn,) = case[side]
            assert len(turn) == 3
            assert min(turn) > 0


class FakeSide:
    """Each turn takes as many seconds as there were turns before it."""

    def __init__(self, turns, checksum):
        self.turns, self.checksum = turns, checksum

    def turn(self, case, folder, *, checksum):
        seconds = float(next(self.turns))
        return {"seconds": {"whole": [seconds]}, "checksum": self.checksum if checksum else None}


def test_the_sides_take_turns_and_each_round_swaps_them(tmp_path):
    turns = count()
    sides = {"old": FakeSide(turns, checksum=1), "new": FakeSide(turns, checksum=1)}
    (one,) = against._compared(against._CASES["big"], tmp_path, sides, rounds=3)
    assert (one.old, one.new) == ([[0.0], [3.0], [4.0]], [[1.0], [2.0], [5.0]])


def test_sides_that_load_different_bytes_cannot_be_compared(tmp_path):
    sides = {"old": FakeSide(count(), checksum=1), "new": FakeSide(count(), checksum=2)}
    with pytest.raises(RuntimeError, match="loaded different bytes"):
        against._compared(against._CASES["big"], tmp_path, sides, rounds=1)


def test_a_side_that_fails_ends_the_comparison(tmp_path, capfd):
    with (
        against._Side("old", tmp_path, turn_s=0) as side,
        pytest.raises(RuntimeError, match="the old side ended with status 1"),
    ):
        side.turn(against._CASES["big"], tmp_path, checksum=False)
    assert f"instead of {tmp_path}" in capfd.readouterr().err


def test_a_side_needs_nothing_of_the_present_tree_s_internals():
    code = "import sys, benchmarks.against_side; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    assert "paraload" in modules
    assert [name for name in modules if name.startswith("paraload.")] == []
