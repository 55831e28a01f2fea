"""Every example in a docstring runs and prints what it shows."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import paraload

MODULES = [
    module.name
    for module in pkgutil.walk_packages(paraload.__path__, "paraload.")
    if not module.name.endswith("__main__")
]
WITH_EXAMPLES = {
    "paraload.adapters.dcp.install",
    "paraload.adapters.dcp.load",
    "paraload.options",
    "paraload.adapters.dcp.readers",
    "paraload.report",
    "paraload.sources",
}


@pytest.mark.parametrize("name", ["paraload", *MODULES])
def test_examples_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
    assert results.attempted or name not in WITH_EXAMPLES
