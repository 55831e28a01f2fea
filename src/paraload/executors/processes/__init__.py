"""Worker processes: they start lean, get slots of shared memory, and leave nothing behind."""
