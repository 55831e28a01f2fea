"""A short soak in the default suite; `make soak` is the long one."""

from __future__ import annotations

from tests import soak


def test_nothing_grows_in_fifteen_seconds(capsys):
    assert soak.run(15, seed=3) == [], capsys.readouterr().out


def test_a_leak_would_be_seen():
    assert soak._growth([*range(100)]) > 40
    assert abs(soak._growth([5, 6] * 50)) < 1
