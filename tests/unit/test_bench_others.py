"""Processor time that other programs take while something is measured."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest

from paraload.cli.bench import others


class Processors(NamedTuple):
    """Like psutil's ``cpu_times()``: seconds since the machine was started."""

    user: float
    system: float
    idle: float
    iowait: float
    guest: float
    guest_nice: float


def test_processor_time_of_other_programs(monkeypatch):
    clock = iter([os.times_result((1, 1, 0, 0, 100)), os.times_result((6, 2, 1, 1, 110))])
    total = iter([Processors(50, 20, 5, 5, 4, 1), Processors(65, 22, 6, 7, 6, 1)])
    monkeypatch.setattr(others.os, "times", lambda: next(clock))
    monkeypatch.setattr(others.psutil, "cpu_times", lambda: next(total))
    # In ten seconds the machine was busy for 17 and this process, with its children, for 8.
    assert others.Others().cores() == pytest.approx(0.9)
