"""Contract suites for people who add a storage, a format or an executor, and things to test with.

A suite is a class of test methods; pytest collects a subclass that says what is to be tested::

    class TestMySource(SourceContract):
        @pytest.fixture
        def files(self, tmp_path): ...  # writes FILES somewhere

        @pytest.fixture
        def source(self, files): ...  # the source that reads them

:func:`resources` and :func:`leaked` tell what a piece of work has left behind.

Only :func:`make_checkpoint` needs torch; sources, formats and executors are tested without it.
"""

from __future__ import annotations

from paraload.testing._checkpoint import make_checkpoint
from paraload.testing._executors import ExecutorContract
from paraload.testing._faulty import FaultySource
from paraload.testing._formats import FormatContract
from paraload.testing._resources import leaked, resources
from paraload.testing._sources import FILES, SourceContract

__all__ = [
    "FILES",
    "ExecutorContract",
    "FaultySource",
    "FormatContract",
    "SourceContract",
    "leaked",
    "make_checkpoint",
    "resources",
]
