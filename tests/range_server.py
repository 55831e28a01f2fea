"""An HTTP server for ranges of files in memory, which fails on demand."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

#: Answers that ``RangeServer.faults`` may ask for, besides a status.
CUT, IGNORED, SHIFTED = "body cut", "range ignored", "another range"


class RangeServer:
    """What the server has and what it was asked.

    Attributes:
        files: path -> content.
        versions: path -> how often it was written; part of the ETag.
        faults: called with (method, path, range as a pair or None) for each request; returns what
            to do wrong.
        asked: (method, path, range) of each request.
        headers: of the last request for a range.
        queries: of all requests.
        most_in_flight: requests at once.
    """

    def __init__(self, files):
        self.files = dict(files)
        self.versions = dict.fromkeys(files, 1)
        self.faults = lambda *_: None
        self.asked = []
        self.headers = {}
        self.queries = set()
        self.url = ""
        self.most_in_flight = self._in_flight = 0
        self._lock = threading.Lock()

    def write(self, path, data):
        self.files[path] = data
        self.versions[path] = self.versions.get(path, 0) + 1

    def fail(self, *answers, method="GET"):
        """Give the next requests of ``method`` these answers."""
        left = list(answers)

        def faults(asked, _path, _range):
            return left.pop(0) if left and asked == method else None

        self.faults = faults

    @contextmanager
    def request(self):
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self):
        with self.server.state.request():
            self._answer()

    def do_GET(self):
        with self.server.state.request():
            self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        state = self.server.state
        path, _, query = self.path.partition("?")
        state.queries.add(query)
        path = unquote(path).lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        wanted = wanted and (int(wanted[1]), int(wanted[2]) + 1)
        state.asked.append((self.command, path, wanted))
        if wanted is not None:
            state.headers = self.headers
        fault = state.faults(self.command, path, wanted)
        if isinstance(fault, int):
            return self._send(fault, b"")
        data = state.files.get(path)
        if data is None:
            folder = path and f"{path.rstrip('/')}/"
            if not any(name.startswith(folder) for name in state.files):
                return self._send(404, b"")
            return self._send(200, self._listing(folder), {"Content-Type": "text/html"})
        headers = {"ETag": f'"{path}-{state.versions[path]}"'}
        if wanted is None or fault == IGNORED:
            return self._send(200, data, headers, cut=fault == CUT)
        start, end = wanted
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if fault == SHIFTED:
            start, end = start + 1, end + 1
        end = min(end, len(data))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self._send(206, memoryview(data)[start:end], headers, cut=fault == CUT)

    def _listing(self, folder):
        rest = (p.removeprefix(folder) for p in self.server.state.files if p.startswith(folder))
        names = sorted({p.partition("/")[0] + ("/" if "/" in p else "") for p in rest})
        links = (f'<a href="http://{self.headers["Host"]}/{folder}{name}">' for name in names)
        return "".join(links).encode()

    def _send(self, status, body, headers=(), *, cut=False):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
    block_on_close = True

    def handle_error(self, *_):
        pass  # clients close connections in the middle of a body


@contextmanager
def serving(files):
    """A :class:`RangeServer` on a free port of the loopback, at its ``url``."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.state = state = RangeServer(files)
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="range-server")
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
