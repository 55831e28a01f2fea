"""What the import contracts in pyproject.toml cannot say: torch, numpy, input and output.

The order of the packages and the absence of circles are import-linter's (``make check``).
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import paraload

SOURCE = Path(__file__).parents[2] / "src"

#: A worker process imports these, and they must not bring torch (2 s, 270 MB) with them.
TORCH_FREE = [
    "paraload",
    "paraload.adapters.dcp.startup",
    "paraload.engine.scheduler",
    "paraload.engine.statistics",
    "paraload.executors.choice",
    "paraload.executors.processes.executor",
    "paraload.executors.processes.slots",
    "paraload.executors.threads",
    "paraload.formats",
    "paraload.formats.torch_zip",
    "paraload.formats.transforms",
    "paraload.hooks",
    "paraload.metadata.index",
    "paraload.options",
    "paraload.planning.read_tasks",
    "paraload.planning.task_sizes",
    "paraload.progress",
    "paraload.report",
    "paraload.sources.local",
    "paraload.sources.torch_streams",
    "paraload.testing",
    "paraload.workers.run_task",
]

#: The core that plans and parses: no reading, no clock.
PURE = [
    "paraload.report.trace",
    "paraload.cli.bench.advice",
    "paraload.core.pickle_scan",
    "paraload.core.tasks",
    "paraload.engine.timeline",
    "paraload.executors.ramp",
    "paraload.formats",
    "paraload.formats.record_checks",
    "paraload.formats.torch_pickle",
    "paraload.formats.torch_zip",
    "paraload.geometry.coverage",
    "paraload.geometry.overlap",
    "paraload.geometry.runs",
    "paraload.geometry.staging_block",
    "paraload.metadata.index",
    "paraload.planning.read_tasks",
    "paraload.planning.task_sizes",
]
IMPURE_IMPORTS = {"os", "time", "threading", "socket", "subprocess", "pathlib", "shutil"}

#: Packages and modules that may import torch.
KNOW_TORCH = (
    "paraload.adapters",
    "paraload.cli",
    "paraload.destinations",
    "paraload.formats.torch_load",
    "paraload.metadata",
    "paraload.testing._checkpoint",
    "paraload.testing._destinations",
)


def modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages(paraload.__path__, "paraload.")]
    return ["paraload", *(name for name in names if name != "paraload.__main__")]


def file_of(module: str) -> Path:
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_roots(module: str) -> set[str]:
    """The top packages that a module imports at run time, inside of functions too."""
    found = set()
    todo = list(ast.parse(file_of(module).read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        todo += ast.iter_child_nodes(node)
    return found


def test_each_package_says_its_rule_in_one_sentence():
    packages = [name for name in modules() if file_of(name).name == "__init__.py"]
    for name in packages:
        first = (importlib.import_module(name).__doc__ or "").split("\n")[0]
        assert first.endswith("."), name


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_neither_read_nor_look_at_the_clock(module):
    assert imported_roots(module) & IMPURE_IMPORTS == set()


def test_only_the_destination_and_adapter_side_know_torch():
    knows_torch = [name for name in modules() if "torch" in imported_roots(name)]
    assert [name for name in knows_torch if not name.startswith(KNOW_TORCH)] == []


def test_only_compat_knows_private_names_of_torch():
    """They can be missing in another version of torch."""
    for module in modules():
        for node in ast.walk(ast.parse(file_of(module).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                parts = [*str(node.module).split("."), *(name.name for name in node.names)]
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
                parts = ast.unparse(node).removesuffix("__version__").split(".")
            else:
                continue
            assert not [part for part in parts if part.startswith("_")], (module, parts)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_brings_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["paraload.executors.processes.slots", "paraload.sources.local"])
def test_a_worker_process_waits_for_no_numpy(module):
    code = f"import sys, {module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_import_paraload_takes_less_than_50_ms():
    code = "import time; t = time.perf_counter(); import paraload; print(time.perf_counter() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(5)
    ]
    assert min(seconds) < 0.050


def test_every_public_name_can_be_imported():
    assert {name for name in paraload.__all__ if getattr(paraload, name, None) is None} == set()
    assert len(paraload.__all__) <= 18  # those of the design, and what install() returns
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = paraload.nonsense


@pytest.mark.parametrize("module", ["errors", "formats", "hooks", "manifest", "sources", "testing"])
def test_public_modules_are_attributes(module):
    code = f"import paraload; assert '{module}' in dir(paraload); assert paraload.{module}.__doc__"
    if module == "errors":
        code += "; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
