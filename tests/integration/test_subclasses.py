"""Tensor subclasses load if their package is imported and allowed, as with torch."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys

import pytest
import torch

import paraload
from paraload.cli import main
from paraload.errors import CheckpointReadError, FormatError, UnsafeObjectError
from paraload.formats import torch_load as _torch_load
from tests.integration import hooks, support

PACKAGE = """
import torch

class Sub(torch.Tensor):
    pass

class Loud:
    def __init__(self): self.text = "x"
"""
NAME = "acme_quant.dtypes.Sub"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that imports a package, which is gone again afterwards."""
    folder = tmp_path / "site" / "acme_quant"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "dtypes.py").write_text(PACKAGE)

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "acme_quant"]:
            del sys.modules[name]

    def load():
        monkeypatch.syspath_prepend(folder.parent)
        return importlib.import_module("acme_quant.dtypes")

    load.forget = forget
    yield load
    forget()
    torch.serialization.clear_safe_globals()


@pytest.fixture
def folder(tmp_path, package):
    """Its tensors, saved by a program that has it."""
    sub = package().Sub
    state = {
        "small": torch.arange(6.0).as_subclass(sub),
        "big": torch.ones(300, 300).as_subclass(sub),
        "plain": torch.ones(3),
    }
    support.save(tmp_path / "ckpt", state)
    package.forget()
    return tmp_path / "ckpt"


WAYS = {
    "threads": {},
    "sequential": {"executor": "sequential"},
    "processes": {"executor": "processes", "max_workers": 2},
    "pool": {"executor": "pool", "max_workers": 2},
    "a hook in threads": {"narrow_tensor": hooks.narrowed},
    "a hook in processes": {
        "narrow_tensor": hooks.narrowed,
        "executor": "processes",
        "max_workers": 2,
    },
}


def blank():
    return {"small": torch.zeros(6), "big": torch.zeros(300, 300), "plain": torch.zeros(3)}


def failures(folder, way):
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load(blank(), folder, no_dist=True, **WAYS[way])
    found = caught.value.failures
    assert [type(failure) for failure in found] == [UnsafeObjectError] * 2
    assert {failure.fqn for failure in found} == {"small", "big"}
    for failure in found:
        text = str(failure)
        assert NAME in text
        assert ".distcp" in text
        assert "bytes [" in text
        assert "\n" not in text
        assert "damaged" not in text
        assert "changed" not in text
        assert str(pickle.loads(pickle.dumps(failure))) == text
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_class_that_is_not_imported_is_named_with_the_cure(folder, way):
    for failure in failures(folder, way):
        assert "not imported" in str(failure)
        assert "`import acme_quant` before loading" in str(failure)
        assert f"torch.serialization.add_safe_globals([{NAME}])" in str(failure)
        assert ("module of the hook" in str(failure)) == ("hook" in way)


@pytest.mark.parametrize("way", ["threads", "processes", "a hook in threads"])
def test_a_class_that_is_imported_has_to_be_allowed(folder, package, way):
    module = package()
    for failure in failures(folder, way):
        assert "imported, but not allowed" in str(failure)
        assert f"add_safe_globals([{NAME}]) before loading" in str(failure)
    torch.serialization.add_safe_globals([module.Sub])
    state = blank()
    paraload.load(state, folder, no_dist=True, **WAYS[way])
    assert torch.equal(state["small"], torch.arange(6.0))
    assert torch.equal(state["big"], torch.ones(300, 300))


def test_of_a_package_that_is_imported_the_module_is_named(folder, package):
    package()
    del sys.modules["acme_quant.dtypes"]
    assert all("`import acme_quant.dtypes`" in str(it) for it in failures(folder, "threads"))


def test_a_version_without_the_class_is_reported(folder, package):
    del package().Sub
    assert all("version of acme_quant" in str(it) for it in failures(folder, "threads"))


def test_verify_calls_them_intact(folder, capsys):
    report = paraload.verify(folder)
    assert (report.ok, report.problems, report.uncompared) == (True, (), 2)
    assert main(["verify", str(folder)]) == 0
    assert main(["inspect", str(folder), "--json", "-"]) == 0
    out = capsys.readouterr().out
    assert {entry["name"] for entry in json.loads(out[out.index("{") :])["entries"]} == {
        "small",
        "big",
        "plain",
    }


def test_a_long_name_is_whole(tmp_path, package):
    module = package()
    kind = type("S" * 300, (torch.Tensor,), {"__module__": "acme_quant.dtypes"})
    setattr(module, kind.__name__, kind)
    support.save(tmp_path / "ckpt", {"w": torch.ones(3).as_subclass(kind)})
    package.forget()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load({"w": torch.zeros(3)}, tmp_path / "ckpt", no_dist=True)
    assert f"add_safe_globals([acme_quant.dtypes.{kind.__name__}])" in str(caught.value)


class Trap:
    def __reduce__(self):
        return os.system, ("echo ran >&2",)


def test_code_in_a_tensor_comes_without_a_recipe(tmp_path, capfd):
    support.save(tmp_path, {"w": torch.ones(3)})
    file = tmp_path / "trap.distcp"
    torch.save(Trap(), file)
    with support.rewritten(tmp_path) as metadata:
        [info] = metadata.storage_data.values()
        info.relative_path, info.offset, info.length = file.name, 0, file.stat().st_size
    for keywords in WAYS.values():
        with pytest.raises(CheckpointReadError) as caught:
            paraload.load({"w": torch.zeros(3)}, tmp_path, no_dist=True, **keywords)
        [failure] = caught.value.failures
        assert type(failure) is UnsafeObjectError
        assert "posix.system" in str(failure)
        assert "Do not trust this file" in str(failure)
        assert "add_safe_globals" not in str(failure)
        assert "import " not in str(failure)
    assert "ran" not in capfd.readouterr().err


def test_an_object_of_an_unknown_class_has_the_same_text(tmp_path, package):
    support.save(tmp_path / "ckpt", {"thing": package().Loud()})
    package.forget()
    planner = paraload.SafeLoadPlanner()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load({"thing": None}, tmp_path / "ckpt", planner=planner, no_dist=True)
    [failure] = caught.value.failures
    for words in ("the object needs the class acme_quant.dtypes.Loud", "`import acme_quant`"):
        assert words in str(failure)
    assert failure.path.endswith(".distcp")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("__main__.Sub", ["does not have", "The script that saved the checkpoint defines it"]),
        ("torch.float3_e1m1", ["A newer torch wrote the file"]),
        ("torch.load", ["Do not trust this file"]),
        ("acme.mod.rebuild", ["Do not trust this file, unless the documentation of acme"]),
        ("os.system", ["Do not trust this file: it is damaged"]),
        ("functools.partial", ["Do not trust this file: it is damaged"]),
        ("eval", ["Do not trust this file: it is damaged"]),
        ("slice", ["made with slice,", "add_safe_globals([slice]) before loading"]),
        ("datetime.datetime", ["add_safe_globals([datetime.datetime])"]),
        ("numpy._core.multiarray.scalar", ["numpy.dtype,", "numpy._core.multiarray.scalar])"]),
        ("numpy.core.multiarray._reconstruct", [" numpy.core.multiarray._reconstruct, numpy.core"]),
        ("acme.Bad\x1b[2J", ["Do not trust this file", r"Bad\x1b[2J"]),
    ],
)
def test_other_names(name, words):
    error = pickle.UnpicklingError(
        f"WeightsUnpickler error: Unsupported global: GLOBAL {name} was not an allowed global by"
    )
    text = str(_torch_load.refusal(error, "tensor"))
    assert all(word in text for word in words)
    assert text.isprintable()


def test_what_torch_has_to_import_itself_is_reported():
    error = pickle.UnpicklingError(
        "Weights only load failed.\n\tWeightsUnpickler error:"
        " ``torch.nested`` and ``torch._dynamo`` must be imported to load nested jagged tensors"
        " (NJTs)\nCheck the documentation"
    )
    text = str(_torch_load.refusal(error, "tensor"))
    assert "``torch.nested`` and ``torch._dynamo`` must be imported to load nested jagged" in text


def test_damage_is_called_damage():
    with pytest.raises(
        FormatError, match="neither paraload nor torch can read the record"
    ) as caught:
        _torch_load.load_tensor(memoryview(b"\x80\x02nonsense"))
    assert "file an issue" not in str(caught.value)
