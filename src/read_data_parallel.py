"""``read_data`` with a literal process pool, as functions or as methods of any reader."""

from paraload.executors.processes._slots import process_single_file as _process_single_file
from paraload.readers import read_data_parallel, read_data_parallel_v2

__all__ = ["_process_single_file", "read_data_parallel", "read_data_parallel_v2"]
