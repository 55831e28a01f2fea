"""Measurements of paraload against torch's reader and the raw limit: ``python -m benchmarks``."""

import os

import paraload

if os.environ.pop("PARALOAD_INSTALL", None):  # torch's readers are measured as they are
    paraload.uninstall()
