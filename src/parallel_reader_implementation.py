"""The mixin, the worker of the process executors, and the steps that hooks replace."""

from paraload.executors.processes._slots import process_single_file as _process_single_file
from paraload.formats._torch_load import narrow_tensor as _narrow_tensor_simple
from paraload.readers import ParallelFileReader, ParallelFileSystemReader
from paraload.transforms import slice_stream as _slice_file_simple

__all__ = [
    "ParallelFileReader",
    "ParallelFileSystemReader",
    "_narrow_tensor_simple",
    "_process_single_file",
    "_slice_file_simple",
]
