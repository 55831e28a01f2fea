"""Contexts for worker processes leave no semaphore, even if other code uses ``multiprocessing``."""

from __future__ import annotations

import gc
from contextlib import closing
from multiprocessing import resource_tracker

import pytest

from paraload.executors.processes.pools import WorkerContext
from paraload.testing import leaked, resources


@pytest.fixture
def tracker():
    """A program that has had the resource tracker for longer."""
    resource_tracker.ensure_running()
    yield
    resource_tracker._resource_tracker._stop()


@pytest.mark.usefixtures("tracker")
def test_locks_that_only_a_cycle_holds_are_gone_at_the_end():
    before = resources()
    gc.disable()
    try:
        with closing(WorkerContext(with_main=False, niceness=0)) as context:
            cycle = [context.Lock(), context.BoundedSemaphore()]
            cycle.append(cycle)
            assert len(leaked(before, grace_s=0)) == 2
            del cycle
        assert leaked(before, grace_s=0) == []
    finally:
        gc.enable()
