"""Decides whether an error says how to allow a class or function that a file names.

People follow such instructions without a second thought. So an error gives them only for what an
honest writer may need: a class of the writer's own package. Files that name ``posix.system``,
``builtins.eval`` and the like were made to run code.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING
from typing import Final

__all__ = ["is_class_of_package", "is_of_data", "is_of_standard_library"]

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


#: Of Python and numpy, what objects in a checkpoint are often made of. To call these runs no other
#: code.
_OF_DATA: Final = {
    "argparse": "Namespace",
    "builtins": "bytearray complex dict frozenset list range set slice tuple",
    "collections": "defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "pathlib": "PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}


def is_of_data(module: str, name: str) -> bool:
    """Whether this builds plain data, and an honest file may have it.

    >>> is_of_data("datetime", "datetime"), is_of_data("functools", "partial")
    (True, False)
    """
    return name in _OF_DATA.get(module, "").split()


def is_of_standard_library(module: str) -> bool:
    """Whether the module comes with Python."""
    return module.partition(".")[0] in _STANDARD_LIBRARY
