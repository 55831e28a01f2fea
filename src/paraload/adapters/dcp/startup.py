"""``PARALOAD_INSTALL=1``: :func:`paraload.install` as soon as a program imports torch's DCP.

paraload-install.pth --if the variable is set--> this module --hook--> import of DCP --> install

Python runs the line in that file when it starts. Without the variable it imports nothing; with it,
torch is imported when the program imports it, and not before. The variable also reaches child
processes, such as those of ``multiprocessing`` and torchrun.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

from paraload.options import INSTALL_VARIABLE, flag_in

_DCP: Final = "torch.distributed.checkpoint"

#: Whether ``adapters.dcp.install`` installs at the end of its import, which imports DCP too.
is_due = False


class _AfterImport(MetaPathFinder):
    """Finds DCP as the other finders do, and installs when it has been imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != _DCP:
            return None
        found = (
            finder.find_spec(fullname, path, target)
            for finder in sys.meta_path
            if finder is not self and hasattr(finder, "find_spec")  # as importlib skips others
        )
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_install(module: ModuleType) -> None:
                execute(module)
                _install()
                # Not earlier: a program may look for the module without importing it, or import it
                # again after an error.
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec


def _install() -> None:
    global is_due  # noqa: PLW0603 - one installation for the process
    is_due = True
    module = importlib.import_module("paraload.adapters.dcp.install")
    if hasattr(module, "install_at_startup"):  # else it is being imported, and calls it itself
        module.install_at_startup()


def install_when_imported() -> None:
    """Install now if DCP has been imported, otherwise as soon as it is."""
    if _DCP in sys.modules:
        _install()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


if flag_in(os.environ, INSTALL_VARIABLE):
    install_when_imported()
