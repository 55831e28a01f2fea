"""fsspec file systems as sources: the suite of sources, and what is special about each."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer

import fsspec
import pytest
from fsspec.exceptions import FSTimeoutError

from paraload.errors import FormatError, ItemReadError, MissingFileError, StorageReadError
from paraload.sources import Read
from paraload.sources.fsspec_errors import TransientError, error_of
from paraload.sources.fsspec_files import FsspecSource
from paraload.testing import FILES, SourceContract
from tests.event_loop import start_event_loop
from tests.servers import BUCKET, faulty_server, s3_server


@pytest.fixture(autouse=True, scope="session")
def _event_loop():
    start_event_loop()


@pytest.fixture
def server():
    with faulty_server({f"ckpt/{path}": data for path, data in FILES.items()}) as server:
        yield server


class TestMemory(SourceContract):
    @pytest.fixture
    def source(self):
        memory = fsspec.filesystem("memory")
        for path, data in FILES.items():
            memory.pipe_file(f"/contract/{path}", data)
        source = FsspecSource("memory://contract")
        yield source
        source.close()
        memory.rm("/contract", recursive=True)


class TestLocal(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        for path, data in FILES.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
        source = FsspecSource(f"file://{tmp_path}")
        yield source
        source.close()


class TestGivenFileSystem(SourceContract):
    """The program's own instance, which stays open."""

    @pytest.fixture
    def source(self, tmp_path):
        for path, data in FILES.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
        fs = fsspec.filesystem("dir", path=str(tmp_path), fs=fsspec.filesystem("file"))
        source = FsspecSource("", fs)
        yield source
        source.close()


class TestZip(SourceContract):
    @pytest.fixture(params=["stored", "deflated"])
    def source(self, tmp_path, request):
        kind = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "all.zip", "w", kind) as archive:
            for path, data in FILES.items():
                archive.writestr(f"ckpt/{path}", data)
        source = FsspecSource(f"zip://ckpt::{tmp_path}/all.zip")
        yield source
        source.close()


class TestTar(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            for path, data in FILES.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        source = FsspecSource(f"tar://::{tmp_path}/all.tar")
        yield source
        source.close()


class TestHttp(SourceContract):
    @pytest.fixture
    def source(self, server):
        source = FsspecSource(f"{server.url}/ckpt")
        yield source
        source.close()


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as endpoint:
        yield endpoint


class TestS3(SourceContract):
    """An object store whose client is asynchronous and retries by itself."""

    @pytest.fixture
    def options(self, endpoint):
        return {"endpoint_url": endpoint, "key": "an-id", "secret": "a-secret"}

    @pytest.fixture
    def source(self, options):
        import s3fs

        fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        for path, data in FILES.items():
            fs.pipe_file(f"{BUCKET}/ckpt/{path}", data)
        fs.close_session(fs.loop, fs._s3)
        source = FsspecSource(f"s3://{BUCKET}/ckpt", **options)
        yield source
        source.close()

    def test_an_old_listing_is_not_believed(self, source, options):
        before = source.stat("small")
        fs = source._file_system()[0]
        fs.ls(f"{BUCKET}/ckpt")
        other = FsspecSource(f"s3://{BUCKET}/ckpt", **options)
        other._file_system()[0].pipe_file(f"{BUCKET}/ckpt/small", b"9876543210")
        other.close()
        after = source.stat("small")
        assert after.size == before.size
        assert after.version != before.version


def buffers_of(size):
    buffer = bytearray(size)
    return buffer, [Read(0, [memoryview(buffer)])]


def test_a_signature_stays_behind_the_path_and_names_are_quoted():
    name = "a b#c%20?.distcp"
    with faulty_server({f"ckpt/{name}": b"0123"}) as server:
        source = FsspecSource(f"{server.url}/ckpt/?sig=abc%2Bdef")
        buffer, reads = buffers_of(4)
        source.read(name, reads)
        assert buffer == b"0123"
        assert server.queries == {"sig=abc%2Bdef"}
        source.close()


def test_connections_are_closed_with_the_source(server):
    source = FsspecSource(f"{server.url}/ckpt")
    source.stat("small")
    session = source._file_system()[0]._session
    assert not session.closed
    source.close()
    assert session.closed


@contextmanager
def answering(response):
    """The URL of a server that sends the same bytes whatever it is asked."""

    class Handler(BaseRequestHandler):
        def handle(self):
            while self.request.recv(1 << 16):
                self.request.sendall(response)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 7\r\n\r\n0123456789",
    ],
    ids=["another protocol", "a body longer than its Content-Length"],
)
@pytest.mark.parametrize("act", ["stat", "read"])
def test_a_response_that_is_not_http_is_no_refusal(response, act):
    with answering(response) as url:
        source = FsspecSource(url)
        calls = {"stat": source.stat, "read": lambda path: source.read(path, buffers_of(10)[1])}
        with pytest.raises(TransientError, match="the response is not valid HTTP: Bad status line"):
            calls[act]("x")
        source.close()


def test_close_ends_a_read_whose_body_has_stalled(server):
    source = FsspecSource(f"{server.url}/ckpt")
    server.always = "stall"
    errors = []

    def read():
        try:
            source.read("small", buffers_of(10)[1])
        except StorageReadError as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    while not server.ranges:
        time.sleep(0.01)
    source.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "the source was closed during the read" in str(errors)
    server.always = None
    buffer, reads = buffers_of(10)
    source.read("small", reads)
    assert buffer == FILES["small"]
    source.close()


def test_close_ends_a_read_that_has_yet_to_send_its_first_range(server, monkeypatch):
    source = FsspecSource(f"{server.url}/ckpt")
    opened = source._file_system

    def closed_meanwhile():
        source.close()
        return opened()

    monkeypatch.setattr(source, "_file_system", closed_meanwhile)
    with pytest.raises(StorageReadError, match="the source was closed during the read"):
        source.read("small", buffers_of(10)[1])
    source.close()
    assert server.ranges == []


def test_a_folder_is_no_file():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/folder/sub/file", b"")
    with pytest.raises(FormatError, match="not a regular file"):
        FsspecSource("memory://folder").stat("sub")
    memory.rm("/folder", recursive=True)


def test_a_source_works_in_a_forked_process():
    with faulty_server({"ckpt/x": b"0123"}) as server:
        source = FsspecSource(f"{server.url}/ckpt")
        assert source.stat("x").size == 4
        pids = multiprocessing.get_context("fork")
        answers = pids.SimpleQueue()
        child = pids.Process(target=lambda: answers.put(source.stat("x").size))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert answers.get() == 4
        answers.close()
        child.close()
        source.close()


def test_read_ahead_is_off_where_the_file_system_has_it():
    asked = []

    class Ranged(fsspec.spec.AbstractBufferedFile):
        def _fetch_range(self, start, end):
            asked.append((start, end))
            return bytes(end - start)

    class Buffered(fsspec.AbstractFileSystem):
        protocol = "buffered-for-a-test"

        def info(self, path, **_):
            return {"name": path, "size": 1 << 24, "type": "file"}

        def _open(self, path, mode="rb", block_size="default", **options):
            return Ranged(self, path, mode, block_size, **options)

    source = FsspecSource("x", Buffered(skip_instance_cache=True))
    _, reads = buffers_of(1000)
    source.read("f", reads)
    assert asked == [(0, 1000)]
    assert source.stat("f").version is None
    source.close()


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"012", TransientError), (b"0123456789", StorageReadError)]
)
def test_answers_of_another_length_are_refused(answer, kind):
    class Inexact(fsspec.AbstractFileSystem):
        protocol = "inexact-for-a-test"

        def info(self, path, **_):
            return {"name": path, "size": 10, "type": "file"}

        def cat_file(self, path, start=None, end=None, **_):
            return answer

    source = FsspecSource("x", Inexact(skip_instance_cache=True))
    buffer, reads = buffers_of(5)
    with pytest.raises(kind):
        source.read("f", reads)
    assert kind is TransientError or buffer == bytes(5)


def test_a_store_that_retries_is_not_asked_again():
    assert FsspecSource("http://h/x").is_transient(TransientError("503"))
    assert not FsspecSource("s3://bucket/x", anon=True).is_transient(TransientError("503"))


class BotocoreLikeError(Exception):
    def __init__(self, status):
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), MissingFileError),
        (BotocoreLikeError(404), MissingFileError),
        (BotocoreLikeError(503), TransientError),
        (FSTimeoutError(), TransientError),
        (ConnectionResetError(104, "reset"), TransientError),
        (BotocoreLikeError(403), StorageReadError),
        (PermissionError("x"), StorageReadError),
        (ValueError("x"), ItemReadError),
    ],
    ids=repr,
)
def test_what_errors_mean(error, kind):
    assert type(error_of(error, "f", redact=str)) is kind
