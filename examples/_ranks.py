"""Processes for the demo: start them, join them to a group, measure the memory of one."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["PeakMemory", "Rank", "run_ranks"]

_PRELOADED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch._dynamo",  # the first optimizer imports it, however little is compiled
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process of a stage; without a group when it is the only one."""

    number: int
    world: int

    def say(self, text: str) -> None:
        """Print, once for all ranks."""
        if self.number == 0:
            print(text, flush=True)

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int, scratch: Path) -> Any:
    """Call ``function(rank, *arguments)`` in fresh processes; what rank 0 returned, as JSON."""
    name = f"{function.__name__}-{world}"
    meeting, answer = scratch / f"{name}.meet", scratch / f"{name}.json"
    # A server that has imported torch forks every rank: seven imports less of some seconds each.
    torch.multiprocessing.set_forkserver_preload(_PRELOADED)
    torch.multiprocessing.start_processes(
        _run_rank,
        args=(world, meeting, answer, function, arguments),
        nprocs=world,
        start_method="forkserver",
    )
    return json.loads(answer.read_text())


def _run_rank(
    number: int,
    world: int,
    meeting: Path,
    answer: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    _silence_torch()
    torch.set_num_threads(1)  # the ranks share this machine's cores
    with _group(number, world, meeting):
        value = function(Rank(number=number, world=world), *arguments)
    if number == 0:
        answer.write_text(json.dumps(value))


def _silence_torch() -> None:
    """Hide what torch says about things that the demo does on purpose or cannot change."""
    # One process without a group loads a checkpoint here: that is the point.
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    # torch's own reader and writer use the typed storages that torch deprecates.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)


@contextmanager
def _group(number: int, world: int, meeting: Path) -> Iterator[None]:
    if world == 1:
        yield
        return
    if sys.platform == "linux":
        # All ranks are here; the machine's name need not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


class PeakMemory:
    """The most memory that this process takes inside of the ``with`` block, above that before.

    Attributes:
        extra_bytes: resident memory; sampled, for a load has no moment to ask at.
    """

    _INTERVAL_S = 0.003

    def __init__(self) -> None:
        self.extra_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        """Give back what is free, so that a load cannot hide in memory that was used before."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)
        self._before_bytes = self._process.memory_info().rss
        self._sampler.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop sampling."""
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            extra_bytes = self._process.memory_info().rss - self._before_bytes
            self.extra_bytes = max(self.extra_bytes, extra_bytes)
            if self._done.wait(self._INTERVAL_S):
                return
