"""Checks every test for leaked descriptors, threads, child processes and shared memory."""

from __future__ import annotations

import signal

import pytest
import torch
from obstore.store import MemoryStore

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in the background, and some tests send Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("paraload.testing")

import tests.old_torch  # noqa: E402, F401 - before any test uses torch
from paraload.testing import leaked, resources  # noqa: E402 - as the line above wants it


@pytest.fixture(scope="session", autouse=True)
def _warm():
    """What torch and obstore open once and keep is not a leak of the first test."""
    torch.rand(8, 8) @ torch.rand(8, 8)
    MemoryStore().put("starts-its-runtime", b"")


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = resources()
    yield
    assert leaked(before) == []
