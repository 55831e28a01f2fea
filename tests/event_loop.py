"""fsspec's event loop, which is started once and kept by the process."""

import asyncio
import time

import fsspec.asyn


def start_event_loop():
    """Start the threads of the loop and its executor, so that no test seems to leak them."""
    loop = fsspec.asyn.get_loop()
    sleepers = (loop.run_in_executor(None, time.sleep, 0.05) for _ in range(32))

    async def started():
        await asyncio.gather(*sleepers)

    asyncio.run_coroutine_threadsafe(started(), loop).result()
