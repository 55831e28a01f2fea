"""Loads of torch's own ``HuggingFaceStorageReader``, whose metadata have no byte ranges.

plan --files--> headers --byte ranges--> ParallelHuggingFaceReader --> the engine

torch reads every header for its metadata; here only those of the files in the plan are read.
"""

import os
from contextlib import closing
from typing import Any

from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader, read_in_turn, reads_as_torch
from paraload.metadata.safetensors_chunks import SafetensorsInfo
from paraload.metadata.safetensors_headers import FileReader
from paraload.options import ReadOptions
from paraload.report import ReadReport


def read_for_stock(
    reader: Any, plan: LoadPlan, planner: LoadPlanner, options: ReadOptions
) -> ReadReport | None:
    """Read ``plan`` for torch's ``reader``, which may be a subclass that transforms tensors.

    The report is that of the last file if the subclass does.
    """
    ours = ParallelHuggingFaceReader(reader.path, options=options)
    ours.storage_data = _located(ours, plan, reader.storage_data)
    if reads_as_torch(reader):
        ours.read_data(plan, planner)
    else:
        read_in_turn(reader, ours, plan, planner)
    return ours.last_report


def _located(
    ours: ParallelHuggingFaceReader, plan: LoadPlan, storage_data: Any
) -> dict[MetadataIndex, SafetensorsInfo]:
    """Byte ranges of all tensors in the files of ``plan``."""
    folder = str(ours.path)
    indexes = {item.storage_index for item in plan.items}
    path_of = {
        index: os.path.relpath(storage_data[index].relative_path, folder)
        for index in indexes
        if index in storage_data
    }
    files = sorted(set(path_of.values()))
    options = ours.options
    with (
        closing(ours._make_source()) as source,  # noqa: SLF001 - a step of readers
        FileReader(
            source, path=folder, retries=options.retries, stall_timeout_s=options.stall_timeout_s
        ) as reader,
    ):
        headers = reader.headers(files)
        ours._metadata_before = reader.seen  # noqa: SLF001 - not part of torch's interface
    infos = {
        (path, it.name): SafetensorsInfo(path, it.start, it.end - it.start, it.layout)
        for path, header in zip(files, headers, strict=True)
        for it in header.tensors
    }
    # Others of the same files are for subclasses, which look for the scales of a tensor.
    located = {MetadataIndex(name): info for (_, name), info in infos.items()}
    for index, path in path_of.items():
        if (info := infos.get((path, index.fqn))) is not None:
            located[index] = info
    return located
