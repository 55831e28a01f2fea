"""The contract of sources, and the files that it is tested with."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from paraload.errors import FormatError, MissingFileError, ShortFileError
from paraload.geometry.runs import Run, rows
from paraload.sources import ByteSource, Read, ReadStats

#: The files that a source under test must be able to read: path -> content.
FILES: Final[dict[str, bytes]] = {
    "empty": b"",
    "small": b"0123456789",
    "sub/large": random.Random(7).randbytes(300_000),  # noqa: S311 - content, not a secret
}


def expect(
    error: type[BaseException] | tuple[type[BaseException], ...], call: Any, *args: Any
) -> BaseException:
    """The error that the call must raise."""
    try:
        call(*args)
    except error as raised:
        return raised
    raise AssertionError(f"{call} raised no {error}")


def _read(source: ByteSource, path: str, start: int, buffers: list[bytearray]) -> ReadStats:
    return source.read(path, [Read(start, [memoryview(buffer) for buffer in buffers])])


class SourceContract:
    """What every :class:`~paraload.sources.ByteSource` does with :data:`FILES`."""

    def test_stat_has_the_size(self, source: ByteSource) -> None:
        sizes = {path: source.stat(path).size for path in FILES}
        assert sizes == {path: len(data) for path, data in FILES.items()}

    def test_the_version_of_an_unchanged_file_stays(self, source: ByteSource) -> None:
        for path in FILES:
            assert source.stat(path) == source.stat(path)

    def test_limits_are_valid_and_constant(self, source: ByteSource) -> None:
        limits = source.limits
        assert limits == source.limits
        assert 0 <= limits.max_gap_bytes < limits.max_request_bytes
        assert 0 < limits.head_bytes <= limits.max_request_bytes
        assert limits.max_buffers >= 3  # noqa: PLR2004 - rows on both sides of a gap
        assert limits.requests_in_flight is None or limits.requests_in_flight >= 1
        assert not limits.forward_only or hasattr(source, "open_stream")

    def test_a_range_is_scattered_over_buffers(self, source: ByteSource) -> None:
        data = FILES["sub/large"]
        whole, scattered, last, none = [300_000], [1, 0, 4095, 100_000, 0], [1], [0]
        for start, sizes in (
            *((0, whole), (5, scattered), (299_999, last)),
            *((7, []), (7, none), (300_000, none)),
        ):
            buffers = [bytearray(size) for size in sizes]
            stats = _read(source, "sub/large", start, buffers)
            assert stats.requests >= 1 or not sizes
            assert 0 <= stats.bytes_direct <= sum(sizes)
            assert b"".join(buffers) == data[start : start + sum(sizes)]

    def test_ranges_may_touch_overlap_and_come_in_any_order(self, source: ByteSource) -> None:
        data = FILES["sub/large"]
        ranges = [(200_000, 70_000), (5, 3), (8, 1000), (100, 5000)]
        buffers = [bytearray(nbytes) for _, nbytes in ranges]
        reads = [
            Read(start, [memoryview(buffer)])
            for (start, _), buffer in zip(ranges, buffers, strict=True)
        ]
        assert source.read("sub/large", reads).requests >= 1
        for (start, nbytes), buffer in zip(ranges, buffers, strict=True):
            assert buffer == data[start : start + nbytes]
        last = Read(299_999, [memoryview(bytearray(2))])
        expect(ShortFileError, source.read, "sub/large", [reads[0], last])

    def test_reading_past_the_end_is_an_error(self, source: ByteSource) -> None:
        for path, start, size in (("small", 5, 6), ("small", 11, 1), ("empty", 0, 1)):
            error = expect(ShortFileError, _read, source, path, start, [bytearray(size)])
            assert path in str(error)

    def test_a_missing_file_is_an_error(self, source: ByteSource) -> None:
        assert "not-there" in str(expect(MissingFileError, source.stat, "not-there"))
        error = expect(MissingFileError, _read, source, "not-there", 0, [bytearray(1)])
        assert "not-there" in str(error)

    def test_pickling(self, source: ByteSource) -> None:
        _read(source, "small", 0, [bytearray(1)])
        twin = pickle.loads(pickle.dumps(source))
        buffer = bytearray(10)
        _read(twin, "small", 0, [buffer])
        assert twin.limits == source.limits
        assert twin.stat("small") == source.stat("small")
        twin.close()
        assert bytes(buffer) == FILES["small"]

    def test_threads_may_share_a_source(self, source: ByteSource) -> None:
        data = FILES["sub/large"]

        def read(start: int) -> bool:
            buffer = bytearray(1000)
            _read(source, "sub/large", start, [buffer])
            return bytes(buffer) == data[start : start + 1000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(0, 299_000, 500)))

    def test_a_closed_source_opens_its_files_again(self, source: ByteSource) -> None:
        for _ in range(2):
            buffer = bytearray(10)
            _read(source, "small", 0, [buffer])
            assert buffer == FILES["small"]
            source.close()
            source.close()

    # Optional capabilities.

    def test_damage_is_not_transient(self, source: Any) -> None:
        if hasattr(source, "is_transient"):
            assert not source.is_transient(ShortFileError("file ends too early"))
            assert not source.is_transient(FormatError("not a regular file"))

    def test_a_dropped_handle_is_opened_again(self, source: Any) -> None:
        if hasattr(source, "drop_handle"):
            source.drop_handle("small")
            for _ in range(2):
                buffer = bytearray(10)
                _read(source, "small", 0, [buffer])
                assert buffer == FILES["small"]
                source.drop_handle("small")
                source.drop_handle("small")

    def test_all_files_are_readable(self, source: Any) -> None:
        if hasattr(source, "require_readable"):
            for path in FILES:
                source.require_readable(path)
            expect(FileNotFoundError, source.require_readable, "not-there")

    def test_a_file_of_another_size_has_changed(self, source: Any) -> None:
        if hasattr(source, "describe_change"):
            before = source.stat("small")
            assert source.describe_change(before, before._replace(size=11))

    def test_rows_are_read_without_the_gaps(self, source: Any) -> None:
        if not hasattr(source, "read_rows"):
            return
        data = FILES["sub/large"]
        for run in (Run(50, 0, 100, 2000, 140, 100), Run(50, 10, 100, 70, 3999, 110)):
            memory = bytearray(b"." * (10 + 2000 * 100))
            expected = bytearray(memory)
            for src, dst, nbytes in rows([run]):
                expected[dst : dst + nbytes] = data[5 + src : 5 + src + nbytes]
            stats = source.read_rows("sub/large", 5, run, memoryview(memory))
            assert stats is None or (stats.requests >= 1 and memory == expected)

    def test_a_stream_is_seekable_and_has_the_whole_file(self, source: Any) -> None:
        if hasattr(source, "open_stream"):
            with source.open_stream("small") as stream:
                stream.seek(3)
                assert stream.read(4) == b"3456"
                assert stream.read() == b"789"
            expect(MissingFileError, lambda: source.open_stream("not-there").__enter__())

    def test_files_of_all_folders_are_listed(self, source: Any) -> None:
        if hasattr(source, "list_files"):
            assert sorted(source.list_files()) == sorted(FILES)

    def test_a_folder_is_listed_without_what_is_below_it(self, source: Any) -> None:
        if hasattr(source, "list_folder"):
            assert sorted(source.list_folder("")) == ["empty", "small", "sub/"]
            assert list(source.list_folder("sub/")) == ["large"]
