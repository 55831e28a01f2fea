"""Whole loads over fsspec file systems: the bits of torch's readers, faults, and what is left."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
import traceback
import uuid
import zipfile
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

import paraload
from paraload import CheckpointReadError, ParallelFileReader, ParallelFsspecReader
from paraload.errors import (
    ChangedFileError,
    InvalidOptionError,
    MetadataError,
    MissingFileError,
    MissingMetadataError,
    ShortFileError,
    StalledReadError,
    StorageReadError,
)
from paraload.sources import Read
from paraload.sources.fsspec_files import FsspecSource
from paraload.sources.local import LocalSource
from paraload.sources.torch_streams import StreamSource
from tests.event_loop import start_event_loop
from tests.integration import hooks, support
from tests.integration.test_slices import WINDOWS, empty, wanted
from tests.old_torch import torch_fsspec
from tests.servers import faulty_server

MIB = 1 << 20


@pytest.fixture(autouse=True, scope="session")
def _event_loop():
    start_event_loop()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(
        "paraload.sources.retrying.random", SimpleNamespace(uniform=lambda *_: 0.001)
    )


def contents(folder, below="ckpt/"):
    return {f"{below}{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def server(folder):
    with faulty_server(contents(folder)) as server:
        yield server


@pytest.fixture
def in_memory():
    """Copies a folder to ``memory://`` and returns its URL."""
    memory = fsspec.filesystem("memory")
    roots = []

    def copied(folder):
        roots.append(f"/{uuid.uuid4()}")
        for name, data in contents(folder, below="").items():
            memory.pipe_file(f"{roots[-1]}/{name}", data)
        return f"memory:/{roots[-1]}"

    yield copied
    for root in roots:
        memory.rm(root, recursive=True)


@pytest.fixture(params=["memory", "file", "zip", "http"])
def url(request, folder, in_memory, tmp_path):
    if request.param == "memory":
        return in_memory(folder)
    if request.param == "file":
        return f"file://{folder}"
    if request.param == "http":
        return f"{request.getfixturevalue('server').url}/ckpt"
    with zipfile.ZipFile(tmp_path / "ckpt.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(folder).items():
            archive.writestr(name, data)
    return f"zip://ckpt::file://{tmp_path}/ckpt.zip"


def failing(reader, saved, kind=CheckpointReadError):
    with pytest.raises(kind) as caught:
        reader.read_data(*support.plan_for(reader, support.empty_like(saved)))
    return caught.value


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_every_executor_loads_the_same_bits_from_every_file_system(url, saved, executor):
    reader = ParallelFsspecReader(url, executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    in_processes = executor in {"processes", "pool"}
    is_memory = url.startswith("memory")
    reasons = " ".join(reader.last_report.fallbacks)
    assert ("memory of this process" in reasons) == (in_processes and is_memory)
    assert bool(reasons) == bool(in_processes and is_memory)


def test_the_same_as_torchs_readers(url, folder, saved):
    ours = support.load(ParallelFsspecReader(url), support.empty_like(saved))
    local = support.load(FileSystemReader(folder), support.empty_like(saved))
    support.assert_same(ours, local)
    if not url.startswith("zip"):  # torch joins names behind the whole chain
        theirs = support.load(torch_fsspec.FsspecReader(url), support.empty_like(saved))
        support.assert_same(ours, theirs)
        fsspec.filesystem("http").clear_instance_cache()
        _close_cached_sessions()


def _close_cached_sessions():
    import gc

    gc.collect()  # torch's reader leaves its connections to the garbage collector


def test_slices_are_those_of_the_whole(tmp_path, in_memory):
    matrix = torch.randn(900, 800)
    support.save(tmp_path / "m", {"w": matrix})
    with faulty_server(contents(tmp_path / "m")) as server:
        for url in (f"{server.url}/ckpt", in_memory(tmp_path / "m")):
            reader, targets = ParallelFsspecReader(url), empty(WINDOWS)
            reader.read_data(*wanted(reader, targets, WINDOWS)).wait()
            for name, window in WINDOWS.items():
                assert torch.equal(targets[name], matrix[window]), name


SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tensors=st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=8), files=st.integers(1, 3))
def test_any_tensors_are_read_bit_by_bit(tmp_path, in_memory, tensors, files):
    folder = tmp_path / str(uuid.uuid4())
    saved = {
        f"t{n}": torch.randint(0, 2, shape).to(dtype) for n, (shape, dtype) in enumerate(tensors)
    }
    support.save(folder, saved, files=files)
    url = in_memory(folder)
    ours = support.load(ParallelFsspecReader(url), support.empty_like(saved))
    theirs = support.load(torch_fsspec.FsspecReader(url), support.empty_like(saved))
    support.assert_same(ours, theirs)
    support.assert_same(ours, saved)


def test_a_url_is_enough(folder, saved, in_memory):
    url = in_memory(folder)
    paraload.load(targets := support.empty_like(saved), url)
    support.assert_same(targets, saved)
    read = paraload.read(url)
    assert all(torch.equal(read[name], saved[name]) for name in ("big.0", "small.5"))
    assert paraload.verify(url).ok


def test_hooks_read_from_streams(url, saved):
    reader = ParallelFsspecReader(url, slice_file=hooks.sliced)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


# Requests.


def test_neighbours_are_one_request(server, saved):
    reader = ParallelFsspecReader(f"{server.url}/ckpt")
    support.load(reader, support.empty_like(saved))
    data = [path for _, path, *_ in server.gets if "distcp" in path]
    assert sorted(data) == sorted(set(data)), "one for each file"
    assert server.headers["Accept-Encoding"] == "identity"


def test_many_requests_are_in_flight(tmp_path):
    saved = support.save(tmp_path, {f"w{n}": torch.randn(MIB) for n in range(24)}, files=4)
    with faulty_server(contents(tmp_path)) as server:
        reader = ParallelFsspecReader(f"{server.url}/ckpt")
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)
        assert 4 <= server.most_in_flight <= 32
        assert all(end - start <= 8 * MIB for *_, start, end in server.ranges)


# Faults.


def last_of(saved):
    """A target whose record does not begin its file."""
    return support.empty_like({"small.5": saved["small.5"]})


@pytest.mark.parametrize("fault", [503, 429, 408, "cut"])
def test_what_fails_for_a_moment_is_read_again(server, saved, fault):
    reader = ParallelFsspecReader(f"{server.url}/ckpt", executor="sequential")
    plan = support.plan_for(reader, targets := support.empty_like(saved))
    server.faults = [fault, fault]
    reader.read_data(*plan)
    assert reader.last_report.retries == 2
    support.assert_same({**targets, "step": 1234, "note": "text"}, saved)


def test_metadata_are_read_again_too(server, saved):
    server.faults = [503, "cut"]
    reader = ParallelFsspecReader(f"{server.url}/ckpt")
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


@pytest.mark.parametrize("status", [500, 503])
def test_looks_are_repeated_although_fsspec_says_not_found(server, saved, status):
    """``HTTPFileSystem.info`` asks with HEAD and GET, and calls every failure "not found"."""
    reader = ParallelFsspecReader(f"{server.url}/ckpt")
    plan = support.plan_for(reader, targets := support.empty_like(saved))
    left = [status] * 2
    server.choose_fault = lambda *asked: left.pop() if left and not asked[2] else None
    reader.read_data(*plan)
    support.assert_same({**targets, "step": 1234, "note": "text"}, saved)


def test_a_server_that_dies_for_good_is_one_error(server, saved):
    reader = ParallelFsspecReader(f"{server.url}/ckpt", retries=1)
    plan = support.plan_for(reader, support.empty_like(saved))
    server.choose_fault = lambda *_: 503
    with pytest.raises(CheckpointReadError, match="503 Service Unavailable") as caught:
        reader.read_data(*plan)
    assert {failure.fqn for failure in caught.value.failures} == {*saved}
    assert all(isinstance(failure, StorageReadError) for failure in caught.value.failures)


def test_nothing_listens_there(saved):
    with faulty_server({}) as gone:
        pass
    with pytest.raises(MetadataError, match="ConnectionRefusedError"):
        ParallelFsspecReader(gone.url, retries=1).read_metadata()


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_a_stalled_body_leaves_no_threads(server, saved, executor):
    reader = ParallelFsspecReader(f"{server.url}/ckpt", executor=executor, stall_timeout_s=0.5)
    plan = support.plan_for(reader, support.empty_like(saved))
    server.always = "stall"
    with pytest.raises(StalledReadError):
        reader.read_data(*plan)
    until_s = time.monotonic() + 1
    while (left := readers()) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert left == []


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("paraload")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_retried(server, saved, status):
    reader = ParallelFsspecReader(f"{server.url}/ckpt")
    plan = support.plan_for(reader, support.empty_like(saved))
    server.always = status
    server.requests.clear()
    with pytest.raises(CheckpointReadError, match=rf"{status} .*Check the credentials"):
        reader.read_data(*plan)
    assert len(server.ranges) <= 3 + len(saved), "each file, then each record for its own error"


def test_missing_files_are_known_before_the_first_byte(server, saved):
    reader = ParallelFsspecReader(f"{server.url}/ckpt")
    plan = support.plan_for(reader, support.empty_like(saved))
    first, second, _ = sorted(path for path in server.files if path.endswith(".distcp"))
    del server.files[first]
    server.files[second] = server.files[second][:-1]
    server.requests.clear()
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    assert {(f.path, type(f)) for f in caught.value.failures} == {
        (Path(first).name, MissingFileError),
        (Path(second).name, ShortFileError),
    }
    assert server.ranges == []


def test_a_missing_checkpoint_is_named(server):
    with pytest.raises(MissingMetadataError, match=r"/nowhere/\.metadata: no such file"):
        ParallelFsspecReader(f"{server.url}/nowhere").read_metadata()
    assert not any("nowhere" in path for _, path, *_ in server.ranges)
    with pytest.raises(MissingMetadataError, match=r"nowhere.*there are no files here"):
        ParallelFsspecReader("memory://nowhere").read_metadata()


def test_a_server_need_not_list_its_files(server):
    del server.files["ckpt/.metadata"]
    server.choose_fault = lambda _, path, __: 403 if path.rstrip("/") == "ckpt" else None
    with pytest.raises(MissingMetadataError, match=r"/ckpt/\.metadata: no such file"):
        ParallelFsspecReader(f"{server.url}/ckpt").read_metadata()


def test_a_server_without_ranges_is_refused(server, saved):
    reader = ParallelFsspecReader(f"{server.url}/ckpt")
    plan = support.plan_for(reader, last_of(saved))
    server.choose_fault = lambda *_: "ignore"
    with pytest.raises(CheckpointReadError, match="does not send ranges"):
        reader.read_data(*plan)


def test_the_beginning_of_a_file_needs_no_ranges(server):
    server.choose_fault = lambda *_: "ignore"
    [path] = [path for path in server.files if "__0_0" in path]
    source = FsspecSource(f"{server.url}/ckpt")
    buffer = bytearray(1000)
    source.read("__0_0.distcp", [Read(0, [memoryview(buffer)])])
    assert bytes(buffer) == server.files[path][:1000]
    source.close()


def test_another_range_than_the_one_wanted_is_refused(server):
    server.choose_fault = lambda *_: "shifted"
    source = FsspecSource(f"{server.url}/ckpt")
    with pytest.raises(StorageReadError, match=r"expected 206 with bytes from 0 on, got 206"):
        source.read("__0_0.distcp", [Read(0, [memoryview(bytearray(10))])])
    source.close()


@pytest.mark.parametrize("kind", ["http", "memory"])
def test_a_file_that_changes_is_an_error(server, folder, saved, in_memory, kind):
    """Same size, other content: only the version tells."""
    url = f"{server.url}/ckpt" if kind == "http" else in_memory(folder)
    memory = fsspec.filesystem("memory")

    def change(_):
        if kind == "http":
            server.versions["ckpt/__0_0.distcp"] = '"second"'
        else:
            path = f"{url.removeprefix('memory:/')}/__0_0.distcp"
            memory.pipe_file(path, memory.cat_file(path))

    error = failing(ParallelFsspecReader(url, progress=change), saved, ChangedFileError)
    assert error.paths == ("__0_0.distcp",)


# Credentials.


@pytest.mark.parametrize("fault", [403, 503, "cut", "ignore"])
def test_no_error_has_credentials(server, saved, fault):
    host = server.url.removeprefix("http://")
    url = f"http://me:pass%20word@{host}/ckpt?sig=SIGNATURE"
    reader = ParallelFsspecReader(url, headers={"X-Other": "HEADER-SECRET"}, retries=0)
    plan = support.plan_for(reader, last_of(saved))
    assert "Basic" in server.headers["Authorization"]
    server.choose_fault = lambda *asked: fault if asked[2] else None
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    told = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    for failure in caught.value.failures:
        told += f"{vars(failure)} {failure.__context__} {failure.__cause__}"
    told += repr(pickle.dumps(caught.value)) + reader.path
    for secret in ("SIGNATURE", "HEADER-SECRET", "pass%20word", "pass word"):
        assert secret not in told
    assert "/ckpt" in str(caught.value)


def test_a_new_checkpoint_id_shows_no_credentials_either():
    reader = ParallelFsspecReader("memory://a")
    reader.reset("http://me:secret@host/step?sig=secret")
    assert reader.path == reader.checkpoint_id == "http://host/step"


def test_secrets_of_options_are_masked_in_any_text(folder):
    class Chatty(DirFileSystem):
        def info(self, path, **kwargs):
            raise RuntimeError(f"no {self.storage_options['token']} for {path}")

    fs = Chatty(path=str(folder), fs=fsspec.filesystem("file"), token="abc-def")
    source = FsspecSource("", fs)
    with pytest.raises(Exception, match=r"RuntimeError: no \*\*\* for x") as caught:
        source.stat("x")
    assert "abc-def" not in caught.value.traceback_text
    assert "raise RuntimeError" in caught.value.traceback_text


# Where `fs` comes from.


class Mixed(ParallelFileReader, torch_fsspec.FsspecReader):
    def __init__(self, path, **options):
        torch_fsspec.FsspecReader.__init__(self, path)
        ParallelFileReader.__init__(self, **options)


def test_torchs_reader_with_the_mixin_reads_ranges(folder, saved, in_memory):
    reader = Mixed(in_memory(folder))
    assert type(reader._make_source()) is FsspecSource
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.fallbacks == {}
    assert type(Mixed(str(folder))._make_source()) is LocalSource


def test_streams_of_a_subclass_are_read(folder, saved, in_memory):
    class Streams(torch_fsspec.FileSystem):
        opened = 0

        def create_stream(self, path, mode):
            Streams.opened += 1
            return super().create_stream(path, mode)

    reader = Mixed(in_memory(folder))
    reader.fs = Streams()
    reader.path = reader.fs.init_path(reader.path)
    assert type(reader._make_source()) is StreamSource
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert Streams.opened > 1


@pytest.mark.parametrize("kind", ["fsspec", "torch", "streams"])
def test_a_subclass_may_bring_its_fs(folder, saved, in_memory, kind):
    class Own(ParallelFsspecReader):
        def __init__(self, path):
            super().__init__(path)
            self.fs = fsspec.filesystem("memory")
            if kind != "fsspec":
                self.fs = Streams() if kind == "streams" else torch_fsspec.FileSystem()
                self.path = self.fs.init_path(path)

    class Streams(torch_fsspec.FileSystem):
        def concat_path(self, path, suffix):
            return super().concat_path(path, suffix)

    reader = Own(in_memory(folder))
    expected = StreamSource if kind == "streams" else FsspecSource
    assert type(reader._make_source()) is expected
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


def test_a_given_file_system_stays_open(server, saved):
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    reader = ParallelFsspecReader(f"{server.url}/ckpt", fs)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert not fs._session.closed
    fs.close_session(fs.loop, fs._session)


def test_a_file_system_of_the_parent_works_after_a_fork(server):
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    source = FsspecSource(f"{server.url}/ckpt", fs)
    size = source.stat("__0_0.distcp").size
    pids = multiprocessing.get_context("fork")
    answers = pids.SimpleQueue()

    def look():
        twin = FsspecSource(f"{server.url}/ckpt", fs)
        answers.put(twin.stat("__0_0.distcp").size)
        twin.close()

    child = pids.Process(target=look)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert answers.get() == size
    answers.close()
    child.close()
    fs.close_session(fs.loop, fs._session)


# Options.


def test_options_of_both_kinds_are_keywords():
    reader = ParallelFsspecReader("http://host/x", max_workers=3, headers={"a": "b"})
    assert reader.options.max_workers == 3
    assert reader._make_source()._options == {"headers": {"a": "b"}}
    with pytest.raises(InvalidOptionError, match="remove anon"):
        ParallelFsspecReader("x", fsspec.filesystem("memory"), anon=True)
    assert paraload.ParallelFsspecReader is ParallelFsspecReader


@pytest.mark.parametrize("protocol", ["nothing", "sftp", "hdfs"])
def test_file_systems_that_are_not_there_are_named(protocol):
    with pytest.raises(InvalidOptionError, match=rf"{protocol}:// cannot be read: .*"):
        ParallelFsspecReader(f"{protocol}://host/x").read_metadata()


def test_without_fsspec_the_next_step_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.utils", None)
    with pytest.raises(InvalidOptionError, match=r"pip install 'paraload\[fsspec\]'"):
        ParallelFsspecReader("http://host/x").read_metadata()
