"""Measurements of paraload against torch's reader and the raw limit: ``python -m benchmarks``."""
