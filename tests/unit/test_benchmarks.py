"""``python -m benchmarks``: what it refuses before minutes of measuring."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "'0' is no number of rounds"),
        (["--only", "big,nothing"], "'nothing' is none of memory, startup, "),
        (["--only", "big", "--readme", "benchmarks/README.md"], "leave --only out"),
        (["--readme", "LICENSE"], "LICENSE has no place between"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_measured(
    arguments, message, capsys, monkeypatch
):
    monkeypatch.setattr(command, "_SECTIONS", dict.fromkeys(command._SECTIONS, pytest.fail))
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert printed.out == ""
