"""A checkpoint of three files, for all tests."""

from __future__ import annotations

import pytest

from tests.integration import support


@pytest.fixture
def saved(tmp_path):
    """What is in it."""
    return support.save(tmp_path / "ckpt", support.example_state())


@pytest.fixture
def folder(tmp_path, saved):
    """Where it is."""
    return tmp_path / "ckpt"
