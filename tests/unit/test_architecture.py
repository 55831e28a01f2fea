"""The import graph is the architecture: imports point one way, and workers stay free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

#: From the top to the bottom. A module imports only from its own layer or from lower ones, and
#: inside of a layer there are no cycles. Every module has its place here.
LAYERS: list[set[str]] = [
    {"paraload.__main__", "read_data_parallel", "parallel_reader_implementation"},
    {"paraload.cli*", "paraload.testing*"},
    {"paraload._load", "paraload._safe_planner", "paraload._verify"},
    {
        "paraload._folder_metadata",
        "paraload._verify_run",
        "paraload._verify_plan",
        "paraload.manifest",
    },
    {"paraload._verify_report"},
    {"paraload._misplanned", "paraload._quick_planner"},
    {"paraload.readers"},
    {"paraload._reading"},
    {"paraload._adapter", "paraload._engine", "paraload._execution", "paraload._plan_items"},
    {"paraload._preflight", "paraload._files", "paraload._dcp_index"},
    {"paraload.metadata"},
    {"paraload._metadata_bytes", "paraload._metadata_parsing"},
    {"paraload._metadata_validation", "paraload._unpickler"},
    {
        "paraload._assembly",
        "paraload._commits",
        "paraload._feed",
        "paraload._items",
        "paraload._job",
        "paraload._ledger",
        "paraload._timeline",
    },
    {"paraload.executors*"},
    {"paraload._converter", "paraload._aliases"},
    {"paraload._worker", "paraload._destination", "paraload._budget", "paraload._plan"},
    {"paraload._index", "paraload._overlap", "paraload._tensor_memory"},
    {
        "paraload._records",
        "paraload._checks",
        "paraload._work",
        "paraload._sink",
        "paraload._audit",
        "paraload._layout_cache",
    },
    {"paraload._daemons"},
    {"paraload.sources*", "paraload.formats*", "paraload.transforms"},
    {"paraload._strided", "paraload._region", "paraload._coverage"},
    {"paraload._result"},
    {"paraload._task", "paraload._geometry", "paraload._checksum", "paraload._opcodes"},
    {
        "paraload.options",
        "paraload.errors",
        "paraload._global_names",
        "paraload._rank_files",
        "paraload.progress",
        "paraload.report",
        "paraload._gc",
        "paraload._resources",
    },
    {"paraload.hooks"},
    {"paraload._trace", "paraload._causes"},
    {"paraload._text"},
    {"paraload._interrupts"},
    {"paraload"},
]

#: A worker process imports these, and they must not bring torch (2 s, 270 MB) with them.
TORCH_FREE = [
    "paraload",
    "paraload._execution",
    "paraload._feed",
    "paraload._index",
    "paraload._ledger",
    "paraload._plan",
    "paraload._worker",
    "paraload.executors._sequential",
    "paraload.executors._threads",
    "paraload.executors.processes._executor",
    "paraload.formats._torch_zip",
    "paraload.hooks",
    "paraload.options",
    "paraload.progress",
    "paraload.report",
    "paraload.sources",
    "paraload.sources._opening",
    "paraload.sources._retrying",
    "paraload.transforms",
]

#: The core that plans and parses: no reading, no clock.
PURE = [
    "paraload._checks",
    "paraload._coverage",
    "paraload._geometry",
    "paraload._index",
    "paraload._overlap",
    "paraload._plan",
    "paraload._region",
    "paraload._timeline",
    "paraload._trace",
    "paraload.cli._bench_advice",
    "paraload.executors._ramp",
    "paraload.formats._torch_pickle",
    "paraload.formats._torch_zip",
]
IMPURE_IMPORTS = {"os", "time", "threading", "socket", "subprocess", "pathlib", "shutil"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """What ``path`` imports at run time, inside of functions too; not for type checkers."""
    found = set()
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            children = {f"{node.module}.{name.name}" for name in node.names}
            found |= (children & known) or {node.module}
        todo += ast.iter_child_nodes(node)
    return found


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        for name in names:
            family = name.removesuffix("*")
            if module == family or (name.endswith("*") and module.startswith(f"{family}.")):
                return number
    return None


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, set(known)) & set(known) for name, path in known.items()}


def test_every_module_has_a_layer():
    assert [name for name in modules() if layer_of(name) is None] == []


def test_every_layer_names_modules_that_exist():
    known = set(modules())
    named = {name.removesuffix("*") for names in LAYERS for name in names}
    assert named - known == set()


def test_imports_point_one_way():
    wrong = [
        f"{importer} imports {imported}"
        for importer, all_imported in graph().items()
        for imported in all_imported
        if layer_of(imported) < layer_of(importer)
    ]
    assert wrong == []


def test_imports_have_no_cycle():
    TopologicalSorter(graph()).prepare()


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_neither_read_nor_look_at_the_clock(module):
    known = modules()
    assert imports(known[module], set(known)) & IMPURE_IMPORTS == set()


def test_only_the_destination_and_adapter_side_know_torch():
    knows_torch = {
        name
        for name, path in modules().items()
        if any(imported.split(".")[0] == "torch" for imported in imports(path, set()))
    }
    assert knows_torch <= {
        "paraload._adapter",
        "paraload._converter",
        "paraload._dcp_index",
        "paraload._destination",
        "paraload._intake",
        "paraload._plan_items",
        "paraload._late_metadata",
        "paraload._load",
        "paraload._metadata_validation",
        "paraload._misplanned",
        "paraload._quick_planner",
        "paraload._reading",
        "paraload._safe_planner",
        "paraload._tensor_memory",
        "paraload._unpickler",
        "paraload._verify_plan",
        "paraload._wholeness",
        "paraload._preflight",
        "paraload.cli._bench_arms",
        "paraload.cli._bench_case",
        "paraload.cli._bench_measure",
        "paraload.cli._checkpoint",
        "paraload.cli._planner",
        "paraload.cli.inspect",
        "paraload.cli.load",
        "paraload.formats._torch_load",
        "paraload.metadata",
        "paraload._folder_metadata",
        "paraload.readers",
        "paraload.testing._checkpoint",
    }


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_brings_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["paraload.executors.processes._slots", "paraload.sources._local"]
)
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
    import paraload

    assert {name for name in paraload.__all__ if getattr(paraload, name, None) is None} == set()
    assert len(paraload.__all__) <= 15
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = paraload.nonsense
