"""Loads of real training libraries through ``paraload.install()``; see ``docs/clients.md``.

Each module of ``programs`` saves and loads as users of a library do, and does not know paraload.
They run in an environment of their own, because they need many packages: ``make test-clients``.
"""
