"""HTTP servers on the loopback: a range server that fails on demand, moto's S3, and nginx."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks.nginx import INSTALL, nginx, program

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
BUCKET = "bucket"
S3_KEYS = {
    "access_key_id": "AKIAEXAMPLE",
    "secret_access_key": "very-secret",
    "region": "eu-west-1",
}


def require(found, what, command):
    """Skip the test unless a server is ``found``; where tests must be complete, fail it."""
    if not found:
        complete = os.environ.get("CI", "false").lower() not in {"", "0", "false"}
        (pytest.fail if complete else pytest.skip)(f"needs {what}: {command}")


class FaultyServer(ThreadingHTTPServer):
    """Serves ranges of ``files`` and lists folders, except where a test asks for a fault.

    Attributes:
        files: path -> content.
        choose_fault: called with (method, path, whether it asks for a range) of each request;
            returns its fault, or ``None`` for those below.
        faults: of the next GET requests, one after the other: a status, "cut", "reset", "stall",
            "ignore" (the range), "shifted" (range), "short" (a body shorter than its range).
        always: the fault of all other GET requests.
        allows: called with the headers of each request; 403 if it returns false.
        head_faults: of the next HEAD requests: statuses.
        requests: ``(method, path, start, end)`` of each, in the order of their beginnings; without
            a range, ``end`` is ``None``.
        headers: of the last request for a range.
        queries: of all requests.
        most_in_flight: requests at once.
        latency_s: of each request.
        versions: path -> ETag; a hash of the content where nothing is here, none for ``None``.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.choose_fault = lambda *_: None
        self.allows = lambda _: True
        self.faults, self.always, self.head_faults = [], None, []
        self.requests, self.headers, self.queries = [], {}, set()
        self.most_in_flight = self._in_flight = 0
        self.latency_s = 0.0
        self.versions = {}
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.connections = set()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients may leave
            super().handle_error(request, client_address)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def gets(self):
        return [request for request in self.requests if request[0] == "GET"]

    @property
    def ranges(self):
        return [request for request in self.requests if request[3] is not None]

    @contextmanager
    def in_flight(self):
        with self.lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self.lock:
                self._in_flight -= 1

    def next_fault(self, method, path, has_range):
        with self.lock:
            if (fault := self.choose_fault(method, path, has_range)) is not None:
                return fault
            faults = self.faults if method == "GET" else self.head_faults
            if faults:
                return faults.pop(0)
            return self.always if method == "GET" else None

    def etag(self, path):
        return self.versions.get(path, f'"{hash(self.files[path]):x}"')


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections.add(self.connection)

    def finish(self):
        with self.server.lock:
            self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        with self.server.in_flight():
            self._answer("HEAD")

    def do_GET(self):
        with self.server.in_flight():
            self._answer("GET")

    def _answer(self, method):
        server, url = self.server, urlsplit(self.path)
        path = unquote(url.path).lstrip("/")
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, None)
        with server.lock:
            server.requests.append((method, path, start, end))
            server.queries.add(url.query)
            if wanted:
                server.headers = self.headers
        server.ended.wait(server.latency_s)
        fault = server.next_fault(method, path, bool(wanted))
        if not server.allows(self.headers):
            fault = 403
        data = server.files.get(path)
        if data is None and fault is None and (listing := self._listing(path)):
            self._send(200, listing if method == "GET" else b"", {"Content-Type": "text/html"})
            return
        if isinstance(fault, int) or data is None:
            secret = b"<Error><Code>Refused</Code><AWSAccessKeyId>signed</AWSAccessKeyId></Error>"
            self._send(fault or 404, secret if method == "GET" else b"", {})
            return
        if fault == "ignore":
            wanted, start, end = None, 0, None
        if start >= len(data) and wanted:
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[start:end]
        at = start + 1 if fault == "shifted" else start
        etag = server.etag(path)
        headers = {} if etag is None else {"ETag": etag}
        if wanted:
            headers["Content-Range"] = f"bytes {at}-{at + len(body) - 1}/{len(data)}"
        if method == "HEAD":
            self._send(200, b"", {**headers, "Content-Length": str(len(data))})
        elif fault in {"cut", "reset", "stall"}:
            headers["Content-Length"] = str(len(body))
            self._send(206 if wanted else 200, body[: len(body) // 2], headers)
            if fault == "stall":
                server.ended.wait(30)
            elif fault == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
        else:
            self._send(206 if wanted else 200, body[:-1] if fault == "short" else body, headers)

    def _listing(self, path):
        folder = path and f"{path.rstrip('/')}/"
        rest = [name.removeprefix(folder) for name in self.server.files if name.startswith(folder)]
        names = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in rest})
        links = (f'<a href="http://{self.headers["Host"]}/{folder}{name}">' for name in names)
        return "".join(links).encode()

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@contextmanager
def faulty_server(files):
    with FaultyServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
            # A thread that waits for the next request of a client would outlive the test.
            with server.lock:
                for connection in server.connections:
                    with suppress(OSError):  # its client has reset it
                        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def nginx_server(root, *, bytes_per_second=1 << 20):
    """The URL of nginx, which serves the folders in ``root`` as :mod:`benchmarks.nginx` says."""
    require(program(), "nginx", INSTALL)
    with nginx(root, bytes_per_second=bytes_per_second) as url:
        yield url


@contextmanager
def s3_server():
    """The endpoint of moto's S3 server, with an empty bucket."""
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        pytest.fail("these tests need moto's S3 server: pip install 'paraload[test]'")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        _ask(endpoint, "POST", "/moto-api/reset")  # all servers of a process share their content
        _ask(endpoint, "PUT", f"/{BUCKET}")
        yield endpoint
    finally:
        server.stop()
        server._server.server_close()  # which moto leaves to the garbage collector


def s3_options(endpoint):
    return {**S3_KEYS, "endpoint": endpoint, "client_options": {"allow_http": True}}


def _ask(endpoint, method, path):
    from http.client import HTTPConnection

    with closing(HTTPConnection(urlsplit(endpoint).netloc, timeout=10)) as connection:
        connection.request(method, path)
        assert connection.getresponse().status == 200
