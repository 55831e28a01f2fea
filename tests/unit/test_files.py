"""The looks at the files of a load: the caller takes quick ones alone, threads share slow ones."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from paraload import _files
from paraload._files import look_at_files, seen_files
from paraload._task import RecordSpec, Wanted
from paraload.sources._base import FileIdentity

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

    def identify(self, path):
        self.looks.append((path, threading.current_thread()))
        self._now_s += self._seconds
        return FileIdentity(1, NAMES.index(path), 10, 0, 0)

    def alone(self):
        """How many looks the caller has taken by itself."""
        return sum(thread is threading.current_thread() for _, thread in self.looks)


def test_quick_looks_start_no_thread(monkeypatch):
    source = Source(monkeypatch, 0.00005)
    seen = seen_files(source, SPECS, path="c", retries=0)
    assert list(seen) == NAMES
    assert source.alone() == len(NAMES)


def test_slow_looks_are_shared_by_threads_and_each_file_is_looked_at_once(monkeypatch):
    source = Source(monkeypatch, 0.001)
    seen, failures = look_at_files(source, SPECS, retries=0)
    assert failures == {}
    assert sorted(path for path, _ in source.looks) == list(seen) == NAMES
    assert [identity.inode for identity in seen.values()] == list(range(100))
    assert source.alone() == 2
