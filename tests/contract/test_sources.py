"""Every source passes the same suite."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed.checkpoint.filesystem import FileSystem

from benchmarks.rated import RatedSource
from paraload.errors import FormatError
from paraload.executors.gauge import GaugedSource
from paraload.sources import Read
from paraload.sources import local as _local
from paraload.sources.local import LocalSource
from paraload.sources.retrying import RetryingSource
from paraload.sources.torch_streams import StreamSource
from paraload.sources.wrapping import WrappedSource
from paraload.testing import FILES, FaultySource, SourceContract
from tests.sources import RemoteLikeSource


def written(folder):
    for path, data in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


class TestLocalSource(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        source = LocalSource(written(tmp_path))
        yield source
        source.close()

    def test_no_more_than_64_files_are_open(self, tmp_path):
        source = LocalSource(tmp_path)
        for n in range(200):
            (tmp_path / f"f{n}").write_bytes(bytes([n]))
        buffers = [bytearray(1) for _ in range(200)]
        for n in range(200):
            source.read(f"f{n}", [Read(0, [memoryview(buffers[n])])])
        assert [buffer[0] for buffer in buffers] == list(range(200))
        assert len(source._handles) == _local._MAX_OPEN_FILES
        source.close()

    @pytest.mark.parametrize("at_once", [1, 4095])
    def test_short_reads_of_the_system_are_gone_on_with(self, source, monkeypatch, at_once):
        import os

        whole = os.preadv
        monkeypatch.setattr(
            _local.os,
            "preadv",
            lambda fd, buffers, at: whole(fd, [next(b for b in buffers if b)[:at_once]], at),
        )
        buffers = [bytearray(size) for size in (3, 0, 5000, 1)]
        stats = source.read("sub/large", [Read(7, [memoryview(b) for b in buffers])])
        assert b"".join(buffers) == FILES["sub/large"][7:5011]
        assert stats.requests >= 5004 // at_once

    @pytest.mark.timeout(10)
    def test_a_fifo_or_a_folder_is_refused_and_not_waited_for(self, tmp_path):
        import os

        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "folder").mkdir()
        source = LocalSource(tmp_path)
        for path in ("fifo", "folder"):
            with pytest.raises((FormatError, IsADirectoryError)):
                source.read(path, [Read(0, [memoryview(bytearray(1))])])
        source.close()


class TestDirectLocalSource(TestLocalSource):
    """Past the page cache, where the file system lets it."""

    @pytest.fixture
    def source(self, tmp_path):
        source = LocalSource(written(tmp_path), direct_io=True)
        yield source
        source.close()


class TestStreamSource(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        source = StreamSource(FileSystem(), written(tmp_path))
        yield source
        source.close()

    def test_a_stream_goes_from_one_to_the_next_and_is_closed_at_the_end(self, source):
        with source.open_stream("small") as first:
            first.read(3)
        with source.open_stream("small") as second:
            assert second is first
            assert second.read(3) == b"345"
        source.close()
        assert first.closed

    def test_a_stream_that_failed_is_not_kept(self, source):
        with pytest.raises(ZeroDivisionError), source.open_stream("small") as first:
            raise ZeroDivisionError
        assert first.closed


class TestGaugedSource(SourceContract):
    """The source through which threads read while their number adapts."""

    @pytest.fixture
    def source(self, tmp_path):
        # Only the source that it wraps is sent to processes.
        source = GaugedSource(LocalSource(written(tmp_path)), lambda _: None)
        yield source
        source.close()

    test_pickling = None


class TestRatedSource(SourceContract):
    """It limits the rate and otherwise behaves as the source that it wraps."""

    @pytest.fixture
    def source(self, tmp_path):
        inner = LocalSource(written(tmp_path))
        source = RatedSource(
            inner, bytes_per_second_per_stream=1e9, latency_s=1e-5, bytes_per_second=1e9
        )
        yield source
        source.close()

    def test_limits_are_pickled(self, source):
        assert vars(pickle.loads(pickle.dumps(source))).items() >= {
            ("bytes_per_second_per_stream", 1e9),
            ("latency_s", 1e-5),
            ("bytes_per_second", 1e9),
        }

    @pytest.mark.parametrize(
        ("limits", "readers", "at_least_s"),
        [
            ({"bytes_per_second_per_stream": 1e6}, 1, 0.1),
            ({"bytes_per_second_per_stream": 1e6}, 8, 0.1),
            ({"bytes_per_second_per_stream": 1e9, "latency_s": 0.05}, 1, 0.05),
            ({"bytes_per_second_per_stream": 1e9, "bytes_per_second": 2e6}, 1, 0.05),
            ({"bytes_per_second_per_stream": 1e9, "bytes_per_second": 2e6}, 8, 0.4),
        ],
    )
    def test_each_stream_has_its_rate_and_all_have_theirs(
        self, tmp_path, limits, readers, at_least_s
    ):
        source = RatedSource(LocalSource(written(tmp_path)), **limits)
        began_s = time.monotonic()
        with ThreadPoolExecutor(readers) as pool:
            for _ in pool.map(
                lambda _: source.read("sub/large", [Read(0, [memoryview(bytearray(100_000))])]),
                range(readers),
            ):
                pass
        took_s = time.monotonic() - began_s
        source.close()
        assert at_least_s <= took_s < at_least_s + 0.5


class TestFaultySource(SourceContract):
    """Without a fault it behaves as the source that it wraps."""

    @pytest.fixture
    def source(self, tmp_path):
        source = FaultySource(LocalSource(written(tmp_path)))
        yield source
        source.close()

    def test_the_chosen_read_fails(self, tmp_path):
        source = FaultySource(LocalSource(written(tmp_path)), fail_at=2, error=OSError(5, "EIO"))
        source = pickle.loads(pickle.dumps(source))
        buffer = memoryview(bytearray(4))
        source.read("small", [Read(0, [buffer])])
        with pytest.raises(OSError, match="EIO"):
            source.read("small", [Read(0, [buffer])])
        source.read("small", [Read(0, [buffer])])
        source.close()

    def test_or_flips_a_bit(self, tmp_path):
        source = FaultySource(LocalSource(written(tmp_path)), fail_at=1)
        buffer = bytearray(4)
        source.read("small", [Read(0, [memoryview(buffer)])])
        assert bytes(buffer) == b"1123"
        source.close()


class TestRemoteLikeSource(SourceContract):
    """A storage unlike a file system."""

    @pytest.fixture
    def source(self):
        return RemoteLikeSource(FILES, latency_s=0.0001)


class TestRetryingSource(SourceContract):
    """The source through which each task reads."""

    @pytest.fixture
    def source(self, tmp_path):
        source = RetryingSource(LocalSource(written(tmp_path)), retries=0)
        yield source
        source.close()

    test_pickling = None


OPTIONAL = {
    "describe_change",
    "drop_handle",
    "is_transient",
    "open_stream",
    "read_rows",
    "require_readable",
    "root",
}


@pytest.mark.parametrize(
    ("inner", "has"),
    [
        (LocalSource("/"), OPTIONAL),
        (StreamSource(FileSystem(), "/"), {"drop_handle", "is_transient", "open_stream"}),
        (RemoteLikeSource(FILES), {"is_transient"}),
    ],
    ids=["local", "streams", "remote"],
)
def test_wrappers_have_the_capabilities_of_what_they_wrap(inner, has):
    def capabilities(source):
        return {name for name in OPTIONAL if hasattr(source, name)}

    assert capabilities(inner) == has
    assert capabilities(GaugedSource(inner, lambda _: None)) == has
    assert capabilities(WrappedSource(inner)) == has - {"read_rows"}
    assert capabilities(RetryingSource(inner, retries=3)) == has - {"is_transient"}
    for wrapped in (GaugedSource(inner, lambda _: None), FaultySource(inner)):
        assert wrapped.limits == inner.limits
