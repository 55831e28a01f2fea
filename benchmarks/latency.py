"""A proxy on the loopback that passes each request on after a delay, and counts them.

    python latency.py HOST PORT SECONDS

It has a process of its own, so that it does not share an interpreter with the client. It prints its
port, and for each line of its input how many requests there have been.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["delayed"]

_PIECE_BYTES: Final = 1 << 20


@contextmanager
def delayed(url: str, *, latency_s: float) -> Iterator[tuple[str, Callable[[], int]]]:
    """Serve ``url`` from another one.

    Args:
        url: of an HTTP/1.1 server without TLS.
        latency_s: how much later a request reaches it.

    Yields:
        The other URL, and a function that counts the requests so far.
    """
    parts = urlsplit(url)
    command = [sys.executable, __file__, str(parts.hostname), str(parts.port), str(latency_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as proxy:
        assert proxy.stdin is not None  # noqa: S101 - for the type checker
        assert proxy.stdout is not None  # noqa: S101
        asked, answered = proxy.stdin, proxy.stdout

        def count() -> int:
            asked.write("\n")
            return int(answered.readline())

        try:
            yield f"http://127.0.0.1:{int(answered.readline())}", count
        finally:
            proxy.terminate()


async def _serve(host: str, port: int, latency_s: float) -> None:
    count = 0

    async def connected(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        bodies, requests = await asyncio.open_connection(host, port, limit=_PIECE_BYTES)

        async def ask() -> None:
            nonlocal count
            while request := await client.read(_PIECE_BYTES):
                # A client waits for an answer before its next request, which is one small packet.
                count += 1
                await asyncio.sleep(latency_s)
                requests.write(request)
            requests.close()

        async def answer() -> None:
            while body := await bodies.read(_PIECE_BYTES):
                answers.write(body)
                await answers.drain()
            answers.close()

        with suppress(ConnectionError):  # a client may leave
            await asyncio.gather(ask(), answer())

    def report() -> None:
        sys.stdin.readline()
        print(count, flush=True)

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    asyncio.get_running_loop().add_reader(sys.stdin, report)
    print(proxy.sockets[0].getsockname()[1], flush=True)
    await proxy.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
