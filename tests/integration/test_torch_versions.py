"""Checkpoints of every torch version, read by this one; and a torch without a name of torch."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

import paraload
from paraload import ParallelFileSystemReader
from paraload.core import compat
from paraload.errors import IncompatibleTorchError, InvalidOptionError, TorchVersionWarning
from tests.integration import support
from tests.torch_versions import __main__ as page
from tests.torch_versions import environment
from tests.torch_versions.saved import FOLDER, state

REPOSITORY = Path(__file__).parents[2]
SAVED = sorted(path.parent for path in FOLDER.rglob("*.metadata"))
VERSIONS = {folder.relative_to(FOLDER).parts[0] for folder in SAVED}


def flat(nested):
    return dcp._nested_dict.flatten_state_dict(nested)[0]


def blank():
    return support.empty_like(flat(state()))


def test_every_version_and_kind_is_there():
    kinds = [(folder.parent.name, folder.name) for folder in SAVED]
    assert len(VERSIONS) == 6
    assert len(kinds) == 6 * 3 - 3, "no zstd before 2.7, no ranks before 2.9"


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("folder", SAVED, ids=lambda it: str(it.relative_to(FOLDER)))
def test_it_loads(folder, executor):
    targets = blank()
    report = paraload.load(targets, folder, executor=executor, max_workers=2)
    support.assert_same(targets, flat(state()))
    assert targets["model.transposed"].dtype == torch.float32
    assert report.unverified == {}
    if executor == "threads":
        assert paraload.verify(folder).ok
    if folder.name != "ranks":  # these belong to one rank each, so read() refuses them
        support.assert_same(paraload.read(folder), flat(state()))


@pytest.mark.parametrize("folder", SAVED, ids=lambda it: str(it.relative_to(FOLDER)))
def test_its_metadata_are_those_that_torch_reads(folder):
    """Where torch can: up to 2.14 it cannot read those of 2.15."""
    [path] = folder.glob("*.metadata")
    entries = (
        ParallelFileSystemReader(folder)
        .read_metadata(**({} if path.name == ".metadata" else {"rank": 0}))
        .state_dict_metadata
    )
    kept = {field.name for field in TensorProperties.__dataclass_fields__.values()}
    for entry in entries.values():
        if isinstance(entry, TensorStorageMetadata):
            assert vars(entry.properties).keys() == kept
    if "strides" not in kept and folder.is_relative_to(FOLDER / "2.15.0"):
        with pytest.raises(ValueError, match="too many values to unpack"):
            pickle.loads(path.read_bytes())
    else:
        assert entries == pickle.loads(path.read_bytes()).state_dict_metadata
    assert list(entries) == list(flat(state()))


# ------------------------------------------------------------------------------ the versions


def makefile(name):
    text = (REPOSITORY / "Makefile").read_text()
    return re.search(rf"^{name} \?= (.+)$", text, re.MULTILINE)[1].split()


def test_the_lower_bound_is_the_oldest_that_is_tested_and_there_is_no_upper_one():
    [bound] = [
        line
        for line in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
            "dependencies"
        ]
        if line.startswith("torch")
    ]
    oldest, *_, newest = sorted(VERSIONS, key=lambda it: [int(part) for part in it.split(".")])
    assert bound == f"torch>={oldest.removesuffix('.0')}"
    assert makefile("SMOKE_TORCH") == [oldest, newest]
    assert all((REPOSITORY / name).exists() for name in makefile("SMOKE_TESTS")[:-1])


def test_the_environment_has_all_pins_but_torch():
    pins = (REPOSITORY / "constraints.txt").read_text()
    kept = environment.pinned(pins)
    assert len(pins.splitlines(keepends=True)) - len(kept) == len(environment.NOT_PINNED)
    assert not [line for line in kept if line.startswith("torch==")]


@pytest.mark.parametrize(
    ("raised", "found"),
    [
        ("", None),
        (
            "raise OSError('libcufft.so.11: cannot open shared object file: No such')",
            "libcufft.so.11",
        ),
        (
            "raise ValueError('libcublas.so.*[0-9] not found in the system path')",
            "libcublas.so.*[0-9]",
        ),
        ("raise ImportError('something else')", RuntimeError),
    ],
)
def test_only_missing_libraries_are_stood_in_for(tmp_path, monkeypatch, raised, found):
    (tmp_path / "torch.py").write_text(raised)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if found is RuntimeError:
        with pytest.raises(RuntimeError, match="something else"):
            environment.missing_library(sys.executable)
    else:
        assert environment.missing_library(sys.executable) == found


def test_the_tables_are_those_of_the_results(tmp_path, monkeypatch):
    for version, skipped in (("2.10.0", {"no npm": 2}), ("2.6.0", {"needs torch 2.7: it": 3})):
        result = {"torch": version, "python": "3.11.7", "passed": 5, "failures": 1}
        result |= {"failed": ["tests/a.py::b"], "skipped": skipped}
        (tmp_path / f"{version}.json").write_text(json.dumps(result))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    found = page.results()
    assert page.summary(found).splitlines()[2:] == [
        "| 2.6.0 | 3.11.7 | 5 | 1 | 3 |",
        "| 2.10.0 | 3.11.7 | 5 | 1 | 2 |",
    ]
    assert page.reasons(found).splitlines()[2:] == [
        "| needs torch 2.7: it | 3 | 0 |",
        "| the machine lacks something | 0 | 2 |",
    ]


def test_the_table_is_written_in_both_languages(tmp_path, monkeypatch):
    docs, saved = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    saved.mkdir()
    result = {"torch": "2.6.0", "python": "3.11.7", "passed": 5, "failures": 0}
    (saved / "2.6.0.json").write_text(json.dumps(result | {"failed": [], "skipped": {}}))
    for path in (*(tmp_path / name for name in page.PAGES), docs / "torch-versions.md"):
        path.write_text(f"{page.PLACE.begin}\n{page.PLACE.end}\n")
    monkeypatch.setattr(page, "RESULTS", saved)
    monkeypatch.setattr(page, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "--write"])
    page.main()
    for name in ("README.md", "README.zh-CN.md"):
        assert "| 2.6.0 | 3.11.7 | 5 | 0 | 0 |" in (tmp_path / name).read_text()


@pytest.mark.parametrize("name", [*page.PAGES, "docs/torch-versions.md"])
def test_the_pages_have_the_last_results(name):
    text = page.PLACE.require_in(REPOSITORY / name)
    assert not page.results() or page.summary(page.results()) in text


# -------------------------------------------------------------------------------- missing names


@pytest.fixture
def forgotten():
    """``paraload.core.compat`` before it has looked anything up."""
    found = {name: vars(compat).pop(name) for name in compat._NAMES if name in vars(compat)}
    yield compat
    for name in compat._NAMES:
        vars(compat).pop(name, None)
    vars(compat).update(found)


def hide(monkeypatch, name):
    """Looked up, it is not there."""
    really = compat._find
    hidden = compat._NAMES[name][:2]

    def find(*where):
        if where == hidden:
            raise AttributeError(where[1])
        return really(*where)

    monkeypatch.setattr(compat, "_find", find)


@pytest.mark.parametrize("name", compat._NAMES)
@pytest.mark.filterwarnings("ignore:torch.distributed.checkpoint._fsspec_filesystem is deprecated")
def test_a_torch_without_the_name(forgotten, monkeypatch, name):
    entry = compat._NAMES[name]
    hide(monkeypatch, name)
    monkeypatch.setattr(compat, "release", lambda: (99, 0))
    if entry.instead is compat._NOTHING:
        with pytest.raises(IncompatibleTorchError) as caught:
            getattr(forgotten, name)
        message = str(caught.value)
    elif entry.lost:
        with pytest.warns(TorchVersionWarning) as warned:
            getattr(forgotten, name)
        [message] = [str(warning.message) for warning in warned]
        with warnings.catch_warnings(action="error"):
            getattr(forgotten, name)  # once is enough
        assert entry.lost in message
    else:
        assert getattr(forgotten, name) is not None
        return
    assert f"torch {torch.__version__} has no {compat.torch_name(name)}" in message


def test_a_torch_from_before_the_name_is_no_reason_to_warn(forgotten, monkeypatch):
    hide(monkeypatch, "ExtensionRegistry")
    monkeypatch.setattr(compat, "release", lambda: (2, 6))
    assert forgotten.ExtensionRegistry is compat._Registry


def test_the_warning_points_at_the_importing_module(forgotten, monkeypatch, tmp_path):
    hide(monkeypatch, "stock_slice_file")
    monkeypatch.setattr(compat, "release", lambda: (99, 0))
    with pytest.warns(TorchVersionWarning) as warned:
        from paraload.core.compat import stock_slice_file
    assert stock_slice_file is None
    assert [Path(warning.filename) for warning in warned] == [Path(__file__)]


def test_loads_go_on_without_the_optional_names(tmp_path):
    """In a new process, where every module looks its names up."""
    support.save(tmp_path, {"w": torch.arange(5.0)})
    code = """if True:
        import sys, warnings, torch
        from paraload.core import compat
        optional = [it for it in compat._NAMES.values() if it.instead is not compat._NOTHING]
        find = compat._find
        def without(module, path):
            if any((it.module, it.path) == (module, path) for it in optional):
                raise AttributeError(path)
            return find(module, path)
        compat._find = without
        warnings.simplefilter("ignore")
        import paraload
        state = {"w": torch.zeros(5)}
        paraload.load(state, sys.argv[1])
        assert paraload.verify(sys.argv[1]).ok
        from paraload.metadata.unpickler import unpickle
        named = b"ctorch.distributed.checkpoint._hf_utils\\n_HFStorageInfo\\n)"
        info = unpickle(named + b"\\x81}X\\x05\\0\\0\\0shapeK\\x07sb.")
        print(state["w"].tolist(), type(info).__module__, vars(info))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[0.0, 1.0, 2.0, 3.0, 4.0] paraload.core.compat {'shape': 7}\n"


# ------------------------------------------------------------------- as torch before 2.7 and 2.9


def test_a_read_without_a_size_ends_with_the_item_before_torch_2_7(monkeypatch):
    stream = io.BytesIO(b"0123456789")
    assert compat.sliceable(stream, 5) is stream or compat.release() < (2, 7)
    monkeypatch.setattr(compat, "release", lambda: (2, 6))
    ending = compat.sliceable(stream, 5)
    ending.seek(2)
    assert (ending.read(), ending.read(), ending.read(2), ending.read(None)) == (
        *(b"234", b"", b"56"),
        b"",
    )


def test_the_registry_before_torch_2_7_knows_zstd_alone(monkeypatch):
    known = compat._Registry()
    assert len(known.from_descriptor_list(["stream.zstd/1", "stream.zstd/1.2"])) == 2
    for unknown in ("stream.zstd/2", "stream.zstd", "stream.rot/1"):
        with pytest.raises(ValueError, match="unknown extension"):
            known.from_descriptor_list(["stream.zstd/1", unknown])
    monkeypatch.setattr(compat, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="unknown extension"):
        known.from_descriptor_list(["stream.zstd/1"])


def test_a_registry_of_the_user_needs_torch_2_7(monkeypatch, tmp_path):
    monkeypatch.setattr(compat, "release", lambda: (2, 6))
    assert compat.save_alone() == {}
    with pytest.raises(InvalidOptionError, match=r"_extension_registry= needs torch 2\.7"):
        ParallelFileSystemReader(tmp_path, compat._Registry())


def test_the_path_of_metadata_is_torch_s_own():
    reader = ParallelFileSystemReader("folder")
    fields = SimpleNamespace(fs=reader.fs, path=reader.path)  # as before 2.9, without the method
    for rank in (None, 0, 3):
        assert compat.metadata_path(fields, rank) == compat.metadata_path(reader, rank)
