"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def nothing_kept(monkeypatch):
    """No metadata is kept when the test begins, and every file counts as settled."""
    from paraload import metadata

    monkeypatch.setattr(metadata, "SETTLED_AFTER_NS", -(10**18))
    metadata.forget()
    yield
    metadata.forget()
