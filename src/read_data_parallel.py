"""``read_data`` with a literal process pool, as functions or as methods of any reader."""

from paraload.adapters.dcp.readers import read_data_parallel, read_data_parallel_v2
from paraload.executors.processes.slots import process_single_file as _process_single_file

__all__ = ["_process_single_file", "read_data_parallel", "read_data_parallel_v2"]
