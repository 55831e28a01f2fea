"""Runs one read task, in a thread or in another process; imports no torch."""
