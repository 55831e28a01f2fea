"""Runnable examples; start with ``python examples/demo.py``."""
