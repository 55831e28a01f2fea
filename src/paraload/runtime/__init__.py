"""The Python process around a load: garbage collector, signals, deadlines, cores and memory."""
