"""Worker processes: started lean, given slots of shared memory, ended without a trace."""
