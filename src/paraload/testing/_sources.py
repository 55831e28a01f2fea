"""The contract of sources, and the files that it is tested with."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from paraload._geometry import Run, rows
from paraload.errors import MissingFileError, ShortFileError

if TYPE_CHECKING:
    from paraload.sources._base import ByteSource

__all__ = ["FILES", "SourceContract", "expect"]

#: The files that a source under test must be able to read: path -> content.
FILES: Final[dict[str, bytes]] = {
    "empty": b"",
    "small": b"0123456789",
    "sub/large": random.Random(7).randbytes(300_000),  # noqa: S311 - content, not a secret
}


def expect(error: type[Exception], call: Any, *args: Any) -> Exception:
    """The error of this kind that the call raises.

    Raises:
        AssertionError: it raises none.
    """
    try:
        call(*args)
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}")


class SourceContract:
    """What every :class:`~paraload.sources._base.ByteSource` does with :data:`FILES`."""

    def test_sizes(self, source: ByteSource) -> None:
        """Every file has its size."""
        assert {path: source.size(path) for path in FILES} == {p: len(d) for p, d in FILES.items()}

    def test_identities(self, source: ByteSource) -> None:
        """A file is known by the same identity each time, with its size; or there is no telling."""
        for path, data in FILES.items():
            identity = source.identify(path)
            if identity is not None:
                assert identity == source.identify(path)
                assert identity.size_bytes == len(data)
                expect(MissingFileError, source.identify, "not-there")

    def test_a_file_that_was_forgotten_is_opened_again(self, source: ByteSource) -> None:
        """And may be forgotten twice, or before it was ever read."""
        source.forget("small")
        for _ in range(2):
            assert source.size("small") == len(FILES["small"])
            source.forget("small")
            source.forget("small")

    def test_ranges(self, source: ByteSource) -> None:
        """Ranges arrive as they are, whole and scattered over buffers of any size."""
        data = FILES["sub/large"]
        whole, scattered, last, none = [300_000], [1, 0, 4095, 100_000, 0], [1], [0]
        for start, sizes in (
            *((0, whole), (5, scattered), (299_999, last)),
            *((7, []), (7, none), (300_000, none)),
        ):
            buffers = [bytearray(size) for size in sizes]
            receipt = source.read_into("sub/large", start, [memoryview(b) for b in buffers])
            assert receipt.requests >= 1 or not sizes
            assert 0 <= receipt.bytes_direct <= sum(sizes)
            assert b"".join(buffers) == data[start : start + sum(sizes)]

    def test_rows(self, source: ByteSource) -> None:
        """Rows arrive as they are, and nothing between them; or this source has no such way."""
        data = FILES["sub/large"]
        for run in (Run(50, 0, 100, 2000, 140, 100), Run(50, 10, 100, 70, 3999, 110)):
            memory = bytearray(b"." * (10 + 2000 * 100))
            expected = bytearray(memory)
            for src, dst, nbytes in rows([run]):
                expected[dst : dst + nbytes] = data[5 + src : 5 + src + nbytes]
            receipt = source.read_rows("sub/large", 5, run, memoryview(memory))
            assert receipt is None or (receipt.requests >= 1 and memory == expected)

    def test_a_short_file_is_an_error(self, source: ByteSource) -> None:
        """Reading past the end never gives fewer bytes."""
        for path, start, size in (("small", 5, 6), ("small", 11, 1), ("empty", 0, 1)):
            buffers = [memoryview(bytearray(size))]
            error = expect(ShortFileError, source.read_into, path, start, buffers)
            assert path in str(error)

    def test_a_missing_file_is_an_error(self, source: ByteSource) -> None:
        """And names the file."""
        error = expect(MissingFileError, source.size, "not-there")
        assert "not-there" in str(error)
        expect(MissingFileError, source.read_into, "not-there", 0, [memoryview(bytearray(1))])

    def test_streams(self, source: ByteSource) -> None:
        """A stream is seekable and has the whole file."""
        with source.open_stream("small") as stream:
            stream.seek(3)
            assert stream.read(4) == b"3456"
            assert stream.read() == b"789"

    def test_pickling(self, source: ByteSource) -> None:
        """What arrives in another process reads the same, with handles of its own."""
        source.size("small")
        twin = pickle.loads(pickle.dumps(source))
        buffer = bytearray(10)
        twin.read_into("small", 0, [memoryview(buffer)])
        twin.close()
        assert bytes(buffer) == FILES["small"]

    def test_many_threads(self, source: ByteSource) -> None:
        """Threads may use one source at once."""
        data = FILES["sub/large"]

        def read(start: int) -> bool:
            buffer = bytearray(1000)
            source.read_into("sub/large", start, [memoryview(buffer)])
            return bytes(buffer) == data[start : start + 1000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(0, 299_000, 500)))

    def test_close_and_go_on(self, source: ByteSource) -> None:
        """A source that was closed opens its files again, and may be closed twice."""
        source.size("small")
        source.close()
        source.close()
        assert source.size("small") == len(FILES["small"])
