"""Decides whether an error says how to allow a class or function that a file names.

People follow such instructions without much thought. So errors give them only for what an honest
writer may need, such as a class of the writer's own package. A file that names ``posix.system`` or
``builtins.eval`` was made to run code.
"""

import sys
from _compat_pickle import IMPORT_MAPPING
from typing import Final

#: With the names of Python 2 ("__builtin__"), which pickle still understands.
_STANDARD_LIBRARY: Final = frozenset(sys.stdlib_module_names) | IMPORT_MAPPING.keys()

#: Classes of Python and numpy that objects in checkpoints often consist of. Calling them runs no
#: other code.
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


def is_class_of_package(module: str, name: str) -> bool:
    """Whether this looks like a class of a package outside of the standard library.

    Each part of ``name`` has to look like a class: pickle also resolves "os.system" in a harmless
    module that imports ``os``.

    >>> is_class_of_package("acme.writer", "StorageInfo"), is_class_of_package("posix", "system")
    (True, False)
    """
    names = name.split(".")
    return (
        all(part.isidentifier() for part in [*module.split("."), *names])
        and not is_of_standard_library(module)
        and all(part.lstrip("_")[:1].isupper() for part in names)
    )


def is_of_data(module: str, name: str) -> bool:
    """Whether this builds plain data, as an honest file may contain it.

    >>> is_of_data("datetime", "datetime"), is_of_data("functools", "partial")
    (True, False)
    """
    return name in _OF_DATA.get(module, "").split()


def is_of_standard_library(module: str) -> bool:
    return module.partition(".")[0] in _STANDARD_LIBRARY
