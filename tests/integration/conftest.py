"""A checkpoint of three files, for all tests."""

from __future__ import annotations

import pytest

from tests.integration import support


@pytest.fixture
def saved(tmp_path):
    """Its state dict."""
    return support.save(tmp_path / "ckpt", support.example_state())


@pytest.fixture
def folder(tmp_path, saved):
    """Its folder."""
    return tmp_path / "ckpt"
