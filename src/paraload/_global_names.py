"""Decides whether an error says how to allow a class or function that a file names.

People follow such instructions without a second thought. So an error gives them only for what an
honest writer may need: a class of the writer's own package. Files that name ``posix.system``,
``builtins.eval`` and the like were made to run code.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING
from typing import Final

__all__ = ["is_class_of_package"]

#: Python 2's names too ("__builtin__"): pickle still understands them.
_STANDARD_LIBRARY: Final = frozenset(sys.stdlib_module_names) | IMPORT_MAPPING.keys()


def is_class_of_package(module: str, name: str) -> bool:
    """Whether this looks like a class of a package outside of the standard library.

    Args:
        module: name of the module.
        name: name within the module. Each part has to look like a class, because pickle also
            resolves "os.system" in a harmless module that imports ``os``.

    >>> is_class_of_package("acme.writer", "StorageInfo"), is_class_of_package("posix", "system")
    (True, False)
    """
    parts = module.split(".")
    return (
        all(part.isidentifier() for part in [*parts, *name.split(".")])
        and parts[0] not in _STANDARD_LIBRARY
        and all(part.lstrip("_")[:1].isupper() for part in name.split("."))
    )
