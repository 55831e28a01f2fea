"""Every destination passes the same suite."""

from __future__ import annotations

import pytest

from paraload.destinations.conversion import HostDestination
from paraload.testing import DestinationContract
from tests.seams import LateDestination


class _OnTheCpu(DestinationContract):
    @pytest.fixture
    def device(self):
        return "cpu"


class TestHostDestination(_OnTheCpu):
    @pytest.fixture
    def destination(self):
        return HostDestination(strict=False)


class TestLateDestination(_OnTheCpu):
    @pytest.fixture
    def destination(self):
        return LateDestination()
