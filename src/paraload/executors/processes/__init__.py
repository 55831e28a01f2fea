"""Tasks in worker processes: slots of shared memory, pools, and what is said of dead workers."""
