"""Every source passes the same suite."""

from __future__ import annotations

import pickle

import pytest
from torch.distributed.checkpoint.filesystem import FileSystem

from paraload.errors import FormatError
from paraload.sources import _local
from paraload.sources._local import LocalSource
from paraload.sources._streams import StreamSource
from paraload.testing import FILES, FaultySource, SourceContract


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
            source.read_into(f"f{n}", 0, [memoryview(buffers[n])])
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
        requests = source.read_into("sub/large", 7, [memoryview(b) for b in buffers])
        assert b"".join(buffers) == FILES["sub/large"][7:5011]
        assert requests >= 5004 // at_once

    @pytest.mark.timeout(10)
    def test_a_fifo_or_a_folder_is_refused_and_not_waited_for(self, tmp_path):
        import os

        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "folder").mkdir()
        source = LocalSource(tmp_path)
        for path in ("fifo", "folder"):
            with pytest.raises((FormatError, IsADirectoryError)):
                source.read_into(path, 0, [memoryview(bytearray(1))])
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


class TestFaultySource(SourceContract):
    """Without a fault it is the source that it wraps."""

    @pytest.fixture
    def source(self, tmp_path):
        source = FaultySource(LocalSource(written(tmp_path)))
        yield source
        source.close()

    def test_the_chosen_read_fails(self, tmp_path):
        source = FaultySource(LocalSource(written(tmp_path)), fail_at=2, error=OSError(5, "EIO"))
        source = pickle.loads(pickle.dumps(source))
        buffer = memoryview(bytearray(4))
        source.read_into("small", 0, [buffer])
        with pytest.raises(OSError, match="EIO"):
            source.read_into("small", 0, [buffer])
        source.read_into("small", 0, [buffer])
        source.close()

    def test_or_flips_a_bit(self, tmp_path):
        source = FaultySource(LocalSource(written(tmp_path)), fail_at=1)
        buffer = bytearray(4)
        source.read_into("small", 0, [memoryview(buffer)])
        assert bytes(buffer) == b"1123"
        source.close()
