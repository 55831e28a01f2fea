"""``python -m benchmarks`` and ``benchmarks.rivals``: what they refuse before they measure."""

from __future__ import annotations

import tempfile

import pytest

from benchmarks import __main__ as bench
from benchmarks.rivals import __main__ as rivals


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
