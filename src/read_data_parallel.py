"""The request's first module: ``read_data`` for existing readers, as functions or methods."""

from paraload._shared import process_single_file as _process_single_file
from paraload.readers import read_data_parallel, read_data_parallel_v2

__all__ = ["_process_single_file", "read_data_parallel", "read_data_parallel_v2"]
