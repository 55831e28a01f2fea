"""The mixin, the worker of the process executors, and the steps that hooks replace."""

from paraload.adapters.dcp.readers import ParallelFileReader, ParallelFileSystemReader
from paraload.executors.processes.slots import process_single_file as _process_single_file
from paraload.formats.torch_load import narrow_tensor as _narrow_tensor_simple
from paraload.formats.transforms import slice_stream as _slice_file_simple

__all__ = [
    "ParallelFileReader",
    "ParallelFileSystemReader",
    "_narrow_tensor_simple",
    "_process_single_file",
    "_slice_file_simple",
]
