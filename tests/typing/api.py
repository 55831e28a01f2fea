"""How the public names are used, as a type checker sees it. Never run: mypy reads it."""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING

import torch.distributed.checkpoint as dcp

import paraload
from paraload import (
    CheckpointReadError,
    ParallelFileReader,
    ParallelFileSystemReader,
    ParallelFsspecReader,
    ParallelHuggingFaceReader,
    ParallelObjectStoreReader,
    ReadOptions,
    ReadProgress,
    ReadReport,
    VerifyReport,
)
from paraload.formats import ItemFormat, NeedBytes, TensorRecord, Unsupported, locate

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner


def show(progress: ReadProgress) -> None:
    done: int = progress.bytes_done
    rate: float = progress.bytes_per_second
    del done, rate


def count_files(current: int, total: int) -> None:
    del current, total


def slice_file(stream: IO[bytes], item_metadata: object) -> IO[bytes]:
    del item_metadata
    return io.BytesIO(stream.read())


def narrow(
    tensor: torch.Tensor, storage_offsets: tuple[int, ...], lengths: tuple[int, ...]
) -> torch.Tensor:
    return tensor.narrow(0, storage_offsets[0], lengths[0])


def load_everything(path: Path, state_dict: dict[str, torch.Tensor]) -> ReadReport:
    try:
        report = paraload.load(
            state_dict,
            path,
            progress=show,
            max_workers=4,
            verify=False,
            allow_globals=("a.B", dict),
        )
    except CheckpointReadError as error:
        for failure in error.failures:
            name: str | None = failure.fqn
            del name
        raise
    seconds: float = report.seconds
    reasons: dict[str, int] = dict(report.fallbacks)
    workers: set[str] = {timing.worker for timing in report.timeline}
    report.write_trace(path / "trace.json")
    del seconds, reasons, workers
    return report


def load_with_torch(path: str, state_dict: dict[str, torch.Tensor]) -> ReadReport | None:
    paraload.install(ReadOptions(direct_io=True), max_workers=4)
    paraload.uninstall()
    with paraload.installed(progress=show) as installation:
        options: ReadOptions = installation.options
        dcp.load(state_dict, checkpoint_id=path)
    del options
    return installation.last_report


class MyReader(ParallelFileReader):
    def __init__(self, path: str) -> None:
        super().__init__(enable_parallel=True, max_workers=8)
        self.path = path
        self.storage_data: dict[object, object] = {}


def read(reader: ParallelFileReader, plan: LoadPlan, planner: LoadPlanner) -> None:
    reader.read_data(plan, planner).wait()
    reader.read_data_with_progress(plan, planner, progress_callback=count_files).wait()
    report: ReadReport | None = reader.last_report
    del report


def readers(path: str) -> list[ParallelFileReader]:
    options = ReadOptions(executor="processes", slice_file=slice_file, narrow_tensor=narrow)
    return [
        ParallelFileSystemReader(path, options=options),
        ParallelFileSystemReader(path, None, progress=True, memory_budget_bytes=64 << 20),
        ParallelHuggingFaceReader(path, thread_count=8, options=options),
        ParallelObjectStoreReader(
            "s3://bucket/step", options=options, storage_options={"region": "x"}
        ),
        MyReader(path),
    ]


class AnyFormat:
    first_bytes = 8
    has_checksum = False

    def locate(self, head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
        return Unsupported("empty") if record_bytes else NeedBytes(len(head) + 1)

    def read_trailer(self, trailer: bytes | memoryview, payload_bytes: int) -> int | None:
        return len(trailer) + payload_bytes


def find(record: bytes) -> tuple[int, int] | str:
    fmt: ItemFormat = AnyFormat()
    found = locate(fmt, lambda nbytes: record[:nbytes], len(record))
    return found.reason if isinstance(found, Unsupported) else (found.start, found.end)


def every_option_is_typed(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """mypy reports an ignored error that does not occur, so each line is a test."""
    paraload.load(state_dict, path, max_worker=3)  # type: ignore[call-arg]
    paraload.load(state_dict, path, max_workers="3")  # type: ignore[arg-type]
    paraload.load(state_dict, path, progress=print, stall_timeout_s=None, allow_globals=("a.B",))
    paraload.load(state_dict, "s3://bucket/step", storage_options={"region": "eu-west-1"})
    paraload.read(path, "w*", max_worker=3)  # type: ignore[call-arg]
    paraload.read(path, "w*", memory_budget_bytes="1 GiB")  # type: ignore[arg-type]
    paraload.verify(path, max_worker=3)  # type: ignore[call-arg]
    ParallelFileReader(max_worker=3)  # type: ignore[call-arg]
    ParallelFileReader(max_workers="3")  # type: ignore[arg-type]
    ParallelFileReader(executor=3)  # type: ignore[arg-type]
    ParallelFileSystemReader(path, max_worker=3)  # type: ignore[call-arg]
    ParallelFileSystemReader(path, enable_parallel="no")  # type: ignore[arg-type]
    ParallelHuggingFaceReader(path, max_worker=3)  # type: ignore[call-arg]
    ParallelObjectStoreReader("s3://bucket/step", max_worker=3)  # type: ignore[call-arg]
    ParallelFsspecReader("hf://org/model", max_worker=3)  # type: ignore[call-arg]
    ReadOptions(max_worker=3)  # type: ignore[call-arg]
    ReadOptions(executor="thread")  # type: ignore[arg-type]
    paraload.load(state_dict, path, executor="thread")  # type: ignore[arg-type]
    paraload.lode(state_dict, path)  # type: ignore[attr-defined]


def everything_has_a_type(path: Path) -> tuple[VerifyReport, dict[str, torch.Tensor]]:
    report = paraload.verify(path, storage_options=None)
    finding: paraload.manifest.Finding = report.problems[0]
    missing: type[paraload.errors.CheckpointReadError] = paraload.errors.MissingFileError
    source: type[paraload.sources.FileStat] = paraload.sources.FileStat
    fmt: type[paraload.formats.NeedBytes] = paraload.formats.NeedBytes
    suite: type[paraload.testing.SourceContract] = paraload.testing.SourceContract
    paraload.manifest.write_manifest(path, path / "manifest.json")
    del finding, missing, source, fmt, suite
    return report, paraload.read(path)


def errors_of_ranks(error: CheckpointReadError) -> list[int]:
    names: set[str | None] = {failure.fqn for failure in error.failures}
    where: set[int] = {rank for failure in error.failures for rank in failure.ranks}
    first: BaseException = error.by_rank[0]
    untouched: bool = error.nothing_was_read
    del names, where, first, untouched
    return list(error.by_rank)
