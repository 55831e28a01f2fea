"""``python -m benchmarks`` and ``benchmarks.rivals``: what they refuse before they measure."""

from __future__ import annotations

import tempfile

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from benchmarks import __main__ as bench
from benchmarks.cases import whole_case
from benchmarks.checkpoints import poison
from benchmarks.raw import RawLimit
from benchmarks.rivals import __main__ as rivals
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
                (["--rounds", "0"], "'0' is no number of rounds"),
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
