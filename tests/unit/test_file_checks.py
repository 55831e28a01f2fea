"""Checks of the files of a load: one thread if they are quick, several if they are slow."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from paraload.core.tasks import RecordSpec, Wanted
from paraload.engine import file_checks as _files
from paraload.engine.file_checks import look_at_files, seen_files
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import FileStat, SourceLimits

NAMES = [f"file-{number:03}" for number in range(100)]
SPECS = [
    RecordSpec(number, name, 0, 10, f"w{number}", Wanted("bytes", (), (), ()))
    for number, name in enumerate(NAMES)
]


class Source:
    """Knows every file after a while, by a clock of its own: machines that are busy have no say."""

    def __init__(self, monkeypatch, seconds):
        self._seconds = seconds
        self._now_s = 0.0
        self.looks = []
        monkeypatch.setattr(_files, "time", SimpleNamespace(monotonic=lambda: self._now_s))

    limits = SourceLimits()

    def stat(self, path):
        self.looks.append((path, threading.current_thread()))
        self._now_s += self._seconds
        return FileStat(10, NAMES.index(path))

    def alone(self):
        """How many looks the first thread has taken by itself."""
        return sum(thread is self.looks[0][1] for _, thread in self.looks)


@pytest.fixture
def looker():
    with DaemonThreads.for_looks(5.0) as thread:
        yield thread


def test_quick_looks_are_all_taken_by_one_thread(monkeypatch, looker):
    source = Source(monkeypatch, 0.00005)
    seen = seen_files(source, SPECS, looker, path="c", retries=0)
    assert list(seen) == NAMES
    assert source.alone() == len(NAMES)
    assert source.looks[0][1] is not threading.current_thread()


def test_without_a_deadline_the_caller_takes_quick_looks(monkeypatch):
    source = Source(monkeypatch, 0.00005)
    with DaemonThreads.for_looks(None) as looker:
        assert list(seen_files(source, SPECS, looker, path="c", retries=0)) == NAMES
    assert {thread for _, thread in source.looks} == {threading.current_thread()}


def test_slow_looks_are_shared_by_threads_and_each_file_is_looked_at_once(monkeypatch, looker):
    source = Source(monkeypatch, 0.001)
    seen, failures = look_at_files(source, SPECS, looker, retries=0)
    assert failures == {}
    assert sorted(path for path, _ in source.looks) == list(seen) == NAMES
    assert [stat.version for stat in seen.values()] == list(range(100))
    assert source.alone() == 2
