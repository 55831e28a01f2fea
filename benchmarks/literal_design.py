"""A literal process pool: the straightforward parallel reader.

    one task per file -> ProcessPoolExecutor -> torch.load, narrow -> tensors by pickle -> copy_

It is written with care: tensors travel by torch's own pickling, which moves them through shared
memory, and the caller applies each result as it arrives rather than all at the end.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import FileSystemReader
from torch.futures import Future

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

__all__ = ["LiteralReader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    item: int
    offset: int
    length: int
    storage_offsets: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileTask:
    path: str
    requests: tuple[_Request, ...]


class LiteralReader(FileSystemReader):
    """``FileSystemReader`` whose ``read_data`` uses a process pool."""

    def __init__(self, path: str | os.PathLike[str], *, max_workers: int) -> None:
        super().__init__(path)
        self._max_workers = max_workers

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read each file in a worker process, apply the tensors here."""
        tasks = self._create_read_tasks(plan)
        with ProcessPoolExecutor(self._max_workers, initializer=_start_worker) as executor:
            futures = [executor.submit(_process_single_file, task) for task in tasks]
            for future in as_completed(futures):
                for item, tensor in future.result():
                    target = planner.resolve_tensor(plan.items[item]).detach()
                    target.copy_(tensor)
                    planner.commit_tensor(plan.items[item], target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _create_read_tasks(self, plan: LoadPlan) -> list[_FileTask]:
        per_file: dict[str, list[_Request]] = {}
        for number, item in enumerate(plan.items):
            info: Any = self.storage_data[item.storage_index]
            request = _Request(
                item=number,
                offset=info.offset,
                length=info.length,
                storage_offsets=tuple(item.storage_offsets),
                lengths=tuple(item.lengths),
            )
            per_file.setdefault(info.relative_path, []).append(request)
        return [
            _FileTask(path=os.path.join(self.path, path), requests=tuple(requests))
            for path, requests in per_file.items()
        ]


def _start_worker() -> None:
    # A forked process hangs in torch's thread pool, which exists in the caller only.
    torch.set_num_threads(1)


def _process_single_file(task: _FileTask) -> list[tuple[int, torch.Tensor]]:
    results = []
    with open(task.path, "rb") as file:
        for request in task.requests:
            file.seek(request.offset)
            record = io.BytesIO(file.read(request.length))
            tensor = torch.load(record, map_location="cpu", weights_only=True)
            cut = narrow_tensor_by_index(tensor, request.storage_offsets, request.lengths)
            results.append((request.item, cut))
    return results
