"""Arithmetic on shapes, strides and byte ranges: pure functions without I/O, clock or torch."""
