"""Contract suites for new storages, formats, executors and destinations, and helpers for tests.

A suite is a class of test methods. Subclass it and provide what it tests as fixtures::

    class TestMySource(SourceContract):
        @pytest.fixture
        def files(self, tmp_path): ...  # writes FILES to the storage

        @pytest.fixture
        def source(self, files): ...  # a source that reads them

:func:`resources` and :func:`leaked` find leaks. Only :func:`make_checkpoint` and
:class:`DestinationContract` need torch.
"""

from paraload.testing._checkpoint import make_checkpoint
from paraload.testing._destinations import DestinationContract
from paraload.testing._executors import ExecutorContract
from paraload.testing._faulty import FaultySource
from paraload.testing._formats import FormatContract
from paraload.testing._resources import leaked, resources
from paraload.testing._sources import FILES, SourceContract

__all__ = [
    "FILES",
    "DestinationContract",
    "ExecutorContract",
    "FaultySource",
    "FormatContract",
    "SourceContract",
    "leaked",
    "make_checkpoint",
    "resources",
]
