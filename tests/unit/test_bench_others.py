"""Processor time that other programs take while something is measured."""

from __future__ import annotations

import os
from types import SimpleNamespace
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


class Child(NamedTuple):
    """A process: its user and system seconds."""

    user: float
    system: float

    def cpu_times(self):
        return (*self, 0.0, 0.0, 0.0)


class Ended:
    """A process that has ended since it was listed."""

    def cpu_times(self):
        raise others.psutil.NoSuchProcess(1)


def test_processor_time_of_other_programs(monkeypatch):
    clock = iter([os.times_result((1, 1, 0, 0, 100)), os.times_result((6, 2, 1, 1, 110))])
    total = iter([Processors(50, 20, 5, 5, 4, 1), Processors(65, 22, 6, 7, 6, 1)])
    monkeypatch.setattr(others.os, "times", lambda: next(clock))
    monkeypatch.setattr(others.psutil, "cpu_times", lambda: next(total))
    running = iter([[Child(1, 0)], [Child(3, 1), Ended()]])
    monkeypatch.setattr(
        others.psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: next(running))
    )
    # In ten seconds the machine was busy for 17, this process and children that have ended for 8,
    # and a child that still runs for 3.
    assert others.Others().cores() == pytest.approx(0.6)
