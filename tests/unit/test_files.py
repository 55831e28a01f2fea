"""The looks at the files of a load: quick ones alone, slow ones at the same time."""

from __future__ import annotations

import threading
import time

from paraload._files import look_at_files, seen_files
from paraload._task import RecordSpec, Wanted
from paraload.sources._base import FileIdentity

NAMES = [f"file-{number:03}" for number in range(100)]
SPECS = [
    RecordSpec(number, name, 0, 10, f"w{number}", Wanted("bytes", (), (), ()))
    for number, name in enumerate(NAMES)
]


class Source:
    """Knows every file after a while."""

    def __init__(self, seconds):
        self._seconds = seconds
        self.looks = []

    def identify(self, path):
        self.looks.append((path, threading.current_thread()))
        time.sleep(self._seconds)
        return FileIdentity(1, NAMES.index(path), 10, 0, 0)


def test_quick_looks_start_no_thread():
    source = Source(0)
    seen = seen_files(source, SPECS, path="c", retries=0)
    assert list(seen) == NAMES
    assert {thread for _, thread in source.looks} == {threading.current_thread()}


def test_slow_looks_are_made_at_the_same_time_and_each_file_is_looked_at_once():
    source = Source(0.01)
    started_s = time.monotonic()
    seen, failures = look_at_files(source, SPECS, retries=0)
    assert time.monotonic() - started_s < 0.5 * 100 * 0.01
    assert failures == {}
    assert sorted(path for path, _ in source.looks) == list(seen) == NAMES
    assert [identity.inode for identity in seen.values()] == list(range(100))
