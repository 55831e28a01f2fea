"""What bytes mean: one record format is one file that implements ``ItemFormat``, without I/O.

:class:`~paraload.testing.FormatContract` is the suite that every format passes.
"""
