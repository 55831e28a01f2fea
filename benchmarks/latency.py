"""A proxy on the loopback that passes each request on after a delay, and counts them.

It has a process of its own, so that it does not share an interpreter with the client.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["delayed"]

_PIECE_BYTES: Final = 1 << 20
_START_S: Final = 30.0


@contextmanager
def delayed(url: str, *, latency_s: float) -> Iterator[tuple[str, Callable[[], int]]]:
    """Serve ``url`` from another one.

    Args:
        url: of an HTTP/1.1 server without TLS.
        latency_s: how much later a request reaches it.

    Yields:
        The other URL, and a function that counts the requests so far.

    Raises:
        RuntimeError: the proxy does not start.
    """
    spawn = get_context("spawn")
    counter = spawn.Value("q", 0)
    ours, its = spawn.Pipe()
    host, port = urlsplit(url).hostname, urlsplit(url).port
    proxy = spawn.Process(target=_run, args=((host, port), latency_s, counter, its), daemon=True)
    proxy.start()
    try:
        if not ours.poll(_START_S):
            raise RuntimeError("the proxy did not start; its message is above")
        yield f"http://127.0.0.1:{ours.recv()}", lambda: counter.value
    finally:
        proxy.terminate()
        proxy.join()


def _run(server: tuple[str, int], latency_s: float, counter: Any, started: Any) -> None:
    asyncio.run(_serve(server, latency_s, counter, started))


async def _serve(server: tuple[str, int], latency_s: float, counter: Any, started: Any) -> None:
    async def connected(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        bodies, requests = await asyncio.open_connection(*server, limit=_PIECE_BYTES)

        async def ask() -> None:
            while request := await client.read(_PIECE_BYTES):
                # A client waits for an answer before its next request, which is one small packet.
                counter.value += 1
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

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    started.send(proxy.sockets[0].getsockname()[1])
    await proxy.serve_forever()
