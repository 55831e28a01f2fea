"""Names of classes and functions that a file asks for: which to explain.

An error that tells how to allow a name is followed without a second thought, so it only tells that
of what an honest writer may need: a class of the writer's own package. ``posix.system``,
``builtins.eval`` and the like are asked for by files that were made to run code.
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
        module: where it is.
        name: within the module. Each part has to look like a class: pickle also follows
            "os.system" to the ``os`` that a harmless module imports.

    >>> is_class_of_package("acme.writer", "StorageInfo"), is_class_of_package("posix", "system")
    (True, False)
    """
    parts = module.split(".")
    return (
        all(part.isidentifier() for part in [*parts, *name.split(".")])
        and parts[0] not in _STANDARD_LIBRARY
        and all(part.lstrip("_")[:1].isupper() for part in name.split("."))
    )
