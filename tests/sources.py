"""A storage that is nothing like a file system, kept in memory."""

from __future__ import annotations

import hashlib
import threading
import time

from paraload.errors import MissingFileError, ShortFileError
from paraload.sources import FileStat, ReadStats, SourceLimits

MIB = 1 << 20


class UnavailableError(Exception):
    """What this storage answers when it is busy; not an ``OSError``."""


class RemoteLikeSource:
    """Behaves like an object store: each request takes a while, versions are ETags.

    Args:
        files: path -> content.
        latency_s: of each request.
        busy: how many reads are answered with :class:`UnavailableError` at first.

    Attributes:
        requests: ``(path, start, end)`` of each request, in the order of their beginnings.
        most_in_flight: requests at once.
    """

    limits = SourceLimits(
        max_request_bytes=8 * MIB, max_gap_bytes=MIB, head_bytes=64 << 10, requests_in_flight=32
    )

    def __init__(self, files, *, latency_s=0.03, busy=0):
        self.files = dict(files)
        self.requests = []
        self.looks = []
        self.most_in_flight = 0
        self._latency_s = latency_s
        self._busy = busy
        self._in_flight = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return RemoteLikeSource, (self.files,)

    def stat(self, path):
        self.looks.append(path)
        data = self._content(path)
        return FileStat(len(data), version=f'"{hashlib.md5(data).hexdigest()}"')

    def read(self, path, reads):
        for start, buffers in reads:
            self._request(path, start, buffers)
        return ReadStats(requests=len(reads))

    def is_transient(self, error):
        return isinstance(error, UnavailableError)

    def close(self):
        pass

    def _request(self, path, start, buffers):
        end = start + sum(map(len, buffers))
        assert end - start <= self.limits.max_request_bytes
        with self._lock:
            self.requests.append((path, start, end))
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            self._busy -= (is_busy := self._busy > 0)
        time.sleep(self._latency_s)
        with self._lock:
            self._in_flight -= 1
        if is_busy:
            raise UnavailableError("503 Slow Down")
        data = self._content(path)[start:end]
        if len(data) < end - start:
            raise ShortFileError("the body ends too early", path=path, start=start, end=end)
        at = 0
        for buffer in buffers:
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)

    def _content(self, path):
        try:
            return self.files[path]
        except KeyError:
            raise MissingFileError("no such object", path=path) from None
