"""Ranges of files over HTTP, copied from the connection into place.

``HTTPFileSystem.cat_file`` does not check that the response is the range, and reads a whole file
into memory if the server does not support ranges.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from http import HTTPStatus
from typing import Any, Final

from paraload.errors import StorageReadError
from paraload.sources.buffers import scatter

BEYOND_THE_END: Final = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
NO_RANGES_HINT: Final = "Download the checkpoint, or use a server that honours Range"


class BodyCopies:
    """Copies of bodies in progress, for the threads that wait for them.

    A server may send half of a body and then nothing. Closing the session does not end such a read
    (aiohttp 3.14), and its thread would wait forever, so :meth:`close` cancels it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Future[int]] = set()
        self._is_closed = False

    def copy(self, fs: Any, url: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` from byte ``start`` on; returns how many bytes arrived."""
        with self._lock:
            if self._is_closed:
                raise _closed()
            call = _copy(fs, url, start, buffers)
            future = asyncio.run_coroutine_threadsafe(call, fs.loop)
            self._running.add(future)
        try:
            return future.result()
        except CancelledError:
            raise _closed() from None
        except BaseException:
            future.cancel()  # Ctrl-C: stop writing to the buffers
            raise
        finally:
            with self._lock:
                self._running.discard(future)

    def close(self) -> None:
        """End all copies with an error, and those that threads are about to begin."""
        with self._lock:
            self._is_closed = True
            running = list(self._running)
        for future in running:
            future.cancel()


def _closed() -> StorageReadError:
    return StorageReadError("the source was closed during the read")


async def _copy(fs: Any, url: str, start: int, buffers: Sequence[memoryview]) -> int:
    end = start + sum(map(len, buffers))
    options = dict(fs.kwargs)
    headers = {
        **options.pop("headers", {}),
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
    }
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers=headers, **options) as response:
        if response.status == BEYOND_THE_END:
            return 0
        response.raise_for_status()
        _require_range(response, start, end)
        left = list(buffers)
        async for chunk in response.content.iter_any():
            scatter(memoryview(chunk), left)
            if not left:
                break
        return end - start - sum(map(len, left))


def _require_range(response: Any, start: int, end: int) -> None:
    """Refuse a body that does not begin at byte ``start`` of the file."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        first = response.headers.get("Content-Range", "").removeprefix("bytes").strip()
        is_range = first.startswith(f"{start}-")
    else:
        is_range = start == 0  # the rest of the whole file is not read
    if not is_range or encoding != "identity":
        raise StorageReadError(
            "the server does not send ranges of files",
            start=start,
            end=end,
            expected=f"206 with bytes from {start} on",
            got=f"{response.status} with {response.headers.get('Content-Range', 'the whole file')}",
            hint=NO_RANGES_HINT,
        )
