"""``paraload.read``: the contents of a checkpoint without a model."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

import paraload
from paraload.adapters.dcp.read import _selected
from paraload.errors import (
    CheckpointReadError,
    FormatError,
    InvalidOptionError,
    MetadataError,
    MissingMetadataError,
    UnsafeObjectError,
)
from tests.integration import support
from tests.old_torch import READS_ALL_KEYS

STATE = {
    "model": {"layers": [{"w": torch.arange(6.0).reshape(2, 3)}, {"w": torch.ones(4).half()}]},
    "ids": torch.arange(5),
    "scalar": torch.tensor(3.0),
    "none": torch.zeros(0, 2),
    "step": 7,
    "args": {"lr": 0.5, "name": "adam"},
}


@pytest.fixture
def folder(tmp_path):
    dcp.save(STATE, checkpoint_id=tmp_path, no_dist=True)
    return tmp_path


def same(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        return all(same(got[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, torch.Tensor):
        return got.dtype == expected.dtype and torch.equal(got, expected)
    return got == expected


def test_what_was_saved_comes_back(folder):
    assert same(paraload.read(folder, nested=True), STATE)
    flat = paraload.read(folder)
    assert set(flat) == {
        *("model.layers.0.w", "model.layers.1.w", "ids", "scalar", "none", "step"),
        *("args.lr", "args.name"),
    }
    assert same(flat["model.layers.0.w"], STATE["model"]["layers"][0]["w"])


@READS_ALL_KEYS.needed
def test_it_is_what_torch_reads(folder):
    assert same(
        paraload.read(folder, nested=True), _load_state_dict_from_keys(checkpoint_id=folder)
    )


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ("model.layers.*", ["model.layers.0.w", "model.layers.1.w"]),
        ("*.1.w", ["model.layers.1.w"]),
        (["step", "ids"], ["ids", "step"]),
        (("ids", "i*"), ["ids"]),
        (lambda name: name.endswith("r"), ["args.lr", "scalar"]),
        ([], []),
        (lambda _: False, []),
    ],
)
def test_keys_choose(folder, keys, names):
    assert sorted(paraload.read(folder, keys)) == sorted(names)


def test_only_what_is_chosen_is_read(tmp_path):
    support.save(tmp_path, {f"w{n}": torch.randn(1 << 18) for n in range(8)}, files=2)
    seen = []
    paraload.read(tmp_path, "w3", progress=seen.append)
    assert seen[-1].bytes_total == 1 << 20


def test_a_name_is_no_pattern_where_an_entry_has_it():
    names = ["w[0]", "w0", "w*", "wide"]
    assert _selected(names, "w[0]") == ["w[0]"]
    assert _selected(names, "w*") == ["w*"]
    assert _selected(names, ["w?"]) == ["w0", "w*"]


def test_a_key_that_matches_nothing_is_an_error_with_the_nearest_names(folder):
    with pytest.raises(InvalidOptionError) as caught:
        paraload.read(folder, ["ids", "model.layer.0.w"])
    assert "'model.layer.0.w' matches none of the checkpoint's 8 names" in str(caught.value)
    assert "'model.layers.0.w'" in str(caught.value)


def test_floating_point_tensors_get_the_dtype(folder):
    flat = paraload.read(folder, dtype=torch.bfloat16)
    dtypes = {name: value.dtype for name, value in flat.items() if isinstance(value, torch.Tensor)}
    assert dtypes.pop("ids") == torch.int64
    assert set(dtypes.values()) == {torch.bfloat16}
    assert torch.equal(flat["model.layers.0.w"], STATE["model"]["layers"][0]["w"].bfloat16())


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_in_a_checkpoint_runs(tmp_path, capsys):
    dcp.save({"w": torch.ones(2), "evil": Evil()}, checkpoint_id=tmp_path, no_dist=True)
    capsys.readouterr()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.read(tmp_path)
    assert isinstance(caught.value, UnsafeObjectError) or "evil" in str(caught.value)
    assert capsys.readouterr().out == ""
    assert paraload.read(tmp_path, "w")["w"].tolist() == [1, 1]


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(MissingMetadataError):
        paraload.read(tmp_path)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"dtype": "bf16"}, "dtype='bf16': expected a dtype such as torch.bfloat16"),
        ({"keys": 5}, "keys=5: expected names, patterns or a function"),
        ({"keys": b"w*"}, "expected names, patterns or a function"),
        ({"keys": [1, "w"]}, "keys: expected names or patterns, got 1"),
        ({"max_worker": 1}, "did you mean 'max_workers'"),
        ({"path": {}}, "path: expected a path or URL, got a dict"),
    ],
)
def test_a_wrong_call_is_told(folder, keywords, text):
    with pytest.raises(InvalidOptionError) as caught:
        paraload.read(**{"path": folder} | keywords)
    assert text in str(caught.value)


def test_options_are_those_of_a_load(folder):
    with pytest.raises(InvalidOptionError, match="max_workers"):
        paraload.read(folder, max_workers=-1)
    options = paraload.ReadOptions(executor="sequential")
    assert same(paraload.read(folder, options=options, nested=True), STATE)


_LEAVES = st.one_of(
    st.integers(),
    st.text(max_size=5),
    st.builds(
        lambda shape, dtype: torch.arange(max(1, shape[0] * shape[1])).to(dtype).new_ones(shape),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool]),
    ),
)
_KEYS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(
    state=st.dictionaries(
        _KEYS,
        st.one_of(_LEAVES, st.dictionaries(_KEYS, _LEAVES, min_size=1, max_size=3)),
        max_size=4,
    )
)
def test_any_nested_state_comes_back(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    dcp.save(pickle.loads(pickle.dumps(state)), checkpoint_id=folder, no_dist=True)
    assert same(paraload.read(folder, nested=True), state)


# Files of torch.save.


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
def test_a_file_of_torch_save(tmp_path, is_archive):
    file = tmp_path / "model.pt"
    torch.save(STATE, file, _use_new_zipfile_serialization=is_archive)
    for path in (file, file.as_uri()):
        assert same(paraload.read(path, nested=True), STATE)
    assert list(paraload.read(file, "model.*")) == ["model.layers.0.w", "model.layers.1.w"]
    flat = paraload.read(file, dtype=torch.bfloat16)
    assert (flat["scalar"].dtype, flat["ids"].dtype) == (torch.bfloat16, torch.int64)


def test_an_optimizer_finds_its_state(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {
        "opt": optimizer.state_dict(),
        "empty": {},
        "": torch.ones(2),
        "list": [torch.ones(1), {"a": 1}],
    }
    torch.save(state, tmp_path / "train.pt")
    found = paraload.read(tmp_path / "train.pt", nested=True)
    assert same(found, state)
    assert list(found["opt"]["state"]) == [0, 1]
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(found["opt"])
    assert same(other.state_dict(), optimizer.state_dict())
    some = paraload.read(tmp_path / "train.pt", ["opt.state.1.*", "list.1.a"], nested=True)
    assert same(some, {"opt": {"state": {1: state["opt"]["state"][1]}}, "list": [None, {"a": 1}]})


def test_tensors_in_tuples_are_copied_too(tmp_path):
    file = tmp_path / "model.pt"
    torch.save({"t": (torch.ones(1 << 16), [2, (torch.ones(2),)])}, file)
    found = paraload.read(file, dtype=torch.float16)["t"]
    file.write_bytes(b"")
    assert found[0].sum(dtype=torch.float32) == 1 << 16
    assert (found[0].dtype, found[1][1][0].dtype) == (torch.float16, torch.float16)


def test_tensors_outlive_the_file(tmp_path):
    file = tmp_path / "model.pt"
    torch.save({"w": torch.nn.Parameter(torch.ones(1 << 16))}, file)
    found = paraload.read(str(file))["w"]
    file.write_bytes(b"")  # reading a mapped tensor would now kill the process
    assert found.sum() == 1 << 16
    assert type(found) is torch.Tensor


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "EOFError"),
        (b"GGUF\x03\0\0\0", "expected a dict of tensors"),
        (b"hello world", "expected a dict of tensors"),
        (torch.ones(2), "got a Tensor"),
        ({"a.b": 1, "a": {"b": 2}}, "a.b"),
    ],
    ids=["empty", "GGUF", "text", "tensor", "two of one name"],
)
def test_what_is_not_a_file_of_tensors(tmp_path, data, text):
    file = tmp_path / "model.bin"
    file.write_bytes(data) if isinstance(data, bytes) else torch.save(data, file)
    with pytest.raises(FormatError, match=text) as caught:
        paraload.read(file)
    assert caught.value.path == str(file)


def test_a_file_of_gguf_is_named(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    with pytest.raises(FormatError, match="paraload does not read GGUF"):
        paraload.read(file)


def test_a_file_of_torch_save_that_is_cut(tmp_path):
    file = tmp_path / "model.pt"
    torch.save(STATE, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="expected a dict of tensors"):
        paraload.read(file)


def test_nothing_in_a_file_of_torch_save_runs(tmp_path, capsys):
    file = tmp_path / "model.pt"
    torch.save({"evil": Evil()}, file)
    with pytest.raises(UnsafeObjectError, match=r"GLOBAL (builtins\.)?print"):
        paraload.read(file)
    assert capsys.readouterr().out == ""


def test_options_are_checked_for_a_file_of_torch_save(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(InvalidOptionError, match="max_workers"):
        paraload.read(tmp_path / "model.pt", max_workers=-1)


def test_only_read_takes_a_file_of_torch_save(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(MetadataError, match=r"only paraload\.read takes a file of torch\.save"):
        paraload.load({}, tmp_path / "model.pt", no_dist=True)
