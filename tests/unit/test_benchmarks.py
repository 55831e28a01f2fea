"""``python -m benchmarks``: what it refuses before it measures, the raw limit, the rounds."""

from __future__ import annotations

import tempfile

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from benchmarks import __main__ as bench
from benchmarks import big, headlines, remote, whole
from benchmarks.cases import whole_case
from benchmarks.checkpoints import poison
from benchmarks.preadv import pieces_of, read_raw
from benchmarks.raw import RawLimit
from benchmarks.results import Section, Table
from benchmarks.rivals import __main__ as rivals
from benchmarks.rounds import interleaved
from paraload.testing import make_checkpoint


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (bench, ["--only", "big,nothing"], "'nothing' is none of memory, startup, "),
        (bench, ["--only", "big", "--readme", "benchmarks/README.md"], "leave --only out"),
        (rivals, ["--only", "flashpack,nobody"], "'nobody' is none of torch, raw, paraload, hf"),
        (rivals, ["--only", "hf", "--readme", "benchmarks/README.md"], "leave --only out"),
        *(
            (command, arguments, message)
            for command in (bench, rivals)
            for arguments, message in (
                (["--rounds", "0"], "'0' is not a number of rounds"),
                (["--readme", "LICENSE"], "LICENSE has no place between"),
                (["--readme", "no-such-page.md"], "No such file"),
            )
        ),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_measured(
    command, arguments, message, capsys, monkeypatch
):
    # Both write their checkpoints first.
    monkeypatch.setattr(tempfile, "TemporaryDirectory", pytest.fail)
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert printed.out == ""


@pytest.mark.parametrize("checksum", [False, True])
def test_the_raw_limit_reads_the_very_bytes(tmp_path, checksum):
    # More than one step of the checksum.
    make_checkpoint(tmp_path, {f"layers.{n}": torch.randn(3000, 1024) for n in range(2)})
    case = whole_case(tmp_path)
    reader = FileSystemReader(tmp_path)
    plan, planner = case.plan(reader)
    reader.read_data(plan, planner).wait()
    expected = {name: tensor.clone() for name, tensor in case.targets.items()}
    poison(case.targets)
    RawLimit(case, workers=2, checksum=checksum).run()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in case.targets.items())


def test_the_raw_limit_says_where_a_file_is_cut(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    pieces = list(pieces_of(str(tmp_path / "file"), 50, memoryview(bytearray(100))))
    with pytest.raises(OSError, match="ends too early, at byte 100"):
        read_raw(pieces, workers=2)


def test_every_arm_runs_once_in_a_round_and_the_order_changes():
    names = ["a", "b", "c", "d"]
    turns = list(interleaved(names, rounds=6))
    orders = [[name for number, name in turns if number == wanted] for wanted in range(6)]
    assert [number for number, _ in turns] == sorted(number for number, _ in turns)
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) > 3
    assert turns == list(interleaved(names, rounds=6)), "the same command runs in another order"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("README.md", "Medians, printed by `make bench` on 2 cores, torch 9."),
        ("README.zh-CN.md", "由 `make bench` 输出；测试机器：2 核，torch 9。"),  # noqa: RUF001
    ],
)
def test_pages_for_users_get_their_figures_in_their_language(tmp_path, name, said):
    def figures(arms):
        return dict(zip(arms, ({"median_s": 6.0}, {"median_s": 1.5}), strict=True))

    table = Table(title="", columns=("files",), rows=(("8",),))
    sections = {
        "big": Section(tables=(), figures={"8 files": figures(big.HEADLINE)}),
        "whole": Section(tables=(), figures=figures(whole.HEADLINE)),
        "remote": Section(tables=(table,), figures={"rated, 8": figures(remote.HEADLINE)}),
    }
    page = tmp_path / name
    marks = (headlines._HEADLINES, headlines._REMOTE)
    page.write_text("\n".join(line for place in marks for line in (place.begin, place.end)))
    assert headlines.parts_of(page) == set(sections)
    headlines.rewrite(page, sections, "2 cores, torch 9")
    text = page.read_text()
    assert text.count("| 6.00 s | 1.50 s | **4.0x** |") == 3
    assert said in text
    assert text.count("2 cores") == (0 if "zh" in name else 2)
