"""Options: arguments, then environment, then defaults; invalid values are refused."""

from __future__ import annotations

import typing

import pytest
import torch

import paraload
from paraload import CheckpointReadError, ReadOptions
from paraload.adapters.dcp.urls import dcp_reader
from paraload.errors import InvalidOptionError
from paraload.options import MixinOptionsDict, ReadOptionsDict, parse_bytes, split_keywords


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"executor": "fork"}, ["executor='fork'", "'threads'"]),
        ({"max_workers": 0}, ["max_workers=0", "1 or more"]),
        ({"max_workers": -5}, ["max_workers=-5", "1 or more"]),
        ({"max_workers": 1025}, ["max_workers=1025", "1024 or less"]),
        ({"max_workers": 1.5}, ["max_workers=1.5", "expected a whole number"]),
        ({"max_workers": True}, ["max_workers=True"]),
        ({"memory_budget_bytes": 5}, ["memory_budget_bytes=5"]),
        ({"verify": "yes"}, ["verify='yes'", "expected True or False"]),
        ({"enable_parallel": 1}, ["enable_parallel=1"]),
        ({"progress": 3}, ["progress=3", "callable"]),
        ({"slice_file": "x"}, ["slice_file='x'", "callable"]),
        ({"transform": 1}, ["transform=1"]),
        ({"narrow_tensor": 1}, ["narrow_tensor=1"]),
        ({"allow_globals": "os.system"}, ["allow_globals='os.system'", "expected a tuple"]),
        ({"allow_globals": ("system",)}, ["allow_globals", "'system'", "module.name"]),
        ({"allow_globals": ("os.sys tem",)}, ["'os.sys tem'"]),
        ({"allow_globals": (3,)}, ["allow_globals: 3 is"]),
    ],
)
def test_impossible_values_are_refused_by_name(keywords, words):
    with pytest.raises(InvalidOptionError) as caught:
        ReadOptions(**keywords)
    assert all(word in str(caught.value) for word in words)


def test_the_error_is_a_value_error_and_blames_no_checkpoint():
    assert not issubclass(InvalidOptionError, CheckpointReadError)
    assert issubclass(InvalidOptionError, ValueError)


def test_unknown_options_are_named_with_the_known_ones():
    with pytest.raises(InvalidOptionError, match=r"'workers'.*max_workers"):
        ReadOptions.resolve(None, {"workers": 3})


def test_too_many_workers_are_refused_from_the_environment_too():
    assert ReadOptions(max_workers=1024).max_workers == 1024
    wanted = r"PARALOAD_MAX_WORKERS='100000'.*expected 1024 or less"
    with pytest.raises(InvalidOptionError, match=wanted):
        ReadOptions.resolve(None, {}, {"PARALOAD_MAX_WORKERS": "100000"})


ENVIRONMENT = {
    "PARALOAD_MAX_WORKERS": "3",
    "PARALOAD_EXECUTOR": "processes",
    "PARALOAD_MEMORY_BUDGET": "64MiB",
    "PARALOAD_PROGRESS": "1",
    "PARALOAD_DIRECT_IO": "yes",
    "PARALOAD_ALLOW_GLOBALS": "a.B, c.d.E",
    "PARALOAD_INSTALL": "1",
}


def test_the_environment_sets_what_is_not_passed():
    options = ReadOptions.resolve(None, {"max_workers": 5}, ENVIRONMENT)
    assert options == ReadOptions(
        max_workers=5,
        executor="processes",
        memory_budget_bytes=64 << 20,
        progress=True,
        direct_io=True,
        allow_globals=("a.B", "c.d.E"),
    )


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("PARALOAD_WORKERS", r"did you mean PARALOAD_MAX_WORKERS\?"),
        ("PARALOAD_BUDGET", r"did you mean PARALOAD_MEMORY_BUDGET\?"),
        ("PARALOAD_XYZ", "known: PARALOAD_MAX_WORKERS, PARALOAD_EXECUTOR, "),
    ],
)
def test_an_unknown_variable_is_a_warning(variable, hint):
    with pytest.warns(UserWarning, match=f"{variable} has no effect, it is not known; {hint}"):
        options = ReadOptions.resolve(None, {}, {variable: "4", "PARALOAD_RETRIES": "7"})
    assert options == ReadOptions(retries=7)


def test_a_complete_set_of_options_ignores_the_environment():
    assert ReadOptions.resolve(ReadOptions(), {}, ENVIRONMENT) == ReadOptions()


def test_a_dict_is_no_set_of_options():
    with pytest.raises(InvalidOptionError, match=r"^options=\{'retries': 1\}: expected a ReadOpt"):
        ReadOptions.resolve({"retries": 1})


def test_globals_may_be_given_as_names_or_as_they_are_and_stay():
    given = ["os.path.join", dict, print]
    options = ReadOptions(allow_globals=given)
    given.append("a.b")
    assert options.allow_globals == ("os.path.join", dict, print)
    assert ReadOptions.resolve(options, {"max_workers": 2}).allow_globals == options.allow_globals


def test_empty_variables_do_not_count():
    assert ReadOptions.resolve(None, {}, dict.fromkeys(ENVIRONMENT, "")) == ReadOptions()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PARALOAD_MAX_WORKERS", "many"),
        ("PARALOAD_MAX_WORKERS", "0"),
        ("PARALOAD_EXECUTOR", "gpu"),
        ("PARALOAD_MEMORY_BUDGET", "lots"),
        ("PARALOAD_PROGRESS", "perhaps"),
        ("PARALOAD_ALLOW_GLOBALS", "system"),
    ],
)
def test_a_bad_variable_is_named(variable, text):
    with pytest.raises(InvalidOptionError, match=f"{variable}='{text}'"):
        ReadOptions.resolve(None, {}, {variable: text})


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("10k", 10240), ("10 KiB", 10240), ("2g", 2 << 30), ("1TB", 1 << 40), ("7b", 7)],
)
def test_sizes_are_read_as_people_write_them(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "1.5g", "MiB", "1 x"])
def test_and_nothing_else_is_a_size(text):
    with pytest.raises(InvalidOptionError):
        parse_bytes(text)


def test_the_typed_keywords_are_the_fields():
    fields = typing.get_type_hints(ReadOptions)
    assert typing.get_type_hints(ReadOptionsDict) == fields
    own = {"enable_parallel", "max_workers"}  # parameters of the mixin
    assert typing.get_type_hints(MixinOptionsDict).keys() == fields.keys() - own


def test_storage_options_are_kept_apart():
    keywords = {"retries": 1, "region": "x"}
    assert split_keywords(keywords, {"retries": 9}) == (
        {"retries": 1},
        {"region": "x", "retries": 9},
    )


@pytest.mark.parametrize(
    "call", [paraload.read, paraload.verify, paraload.ParallelHuggingFaceReader]
)
def test_storage_options_of_a_folder_are_an_error(tmp_path, call):
    with pytest.raises(InvalidOptionError, match="storage_options= are for URLs"):
        call(tmp_path, storage_options={"region": "x"})
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(InvalidOptionError, match="storage_options= are for URLs"):
        call(file, storage_options={"region": "x"})


def test_storage_options_of_a_file_of_torch_are_an_error(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(InvalidOptionError, match="storage_options= are for URLs"):
        paraload.read(tmp_path / "w.pt", storage_options={"region": "x"})


def test_storage_options_reach_the_storage_of_a_url():
    reader = paraload.ParallelFsspecReader("memory://a", storage_options={"retries": 9}, retries=1)
    assert (reader.options.retries, reader._storage_options) == (1, {"retries": 9})
    assert dcp_reader("memory://a", storage_options={"x": 1})._storage_options == {"x": 1}
    reader = paraload.ParallelHuggingFaceReader("memory://a", storage_options={"x": 1})
    assert reader._storage_options == {"x": 1}
    options = {"region": "eu-west-1", "skip_signature": True}
    reader = paraload.ParallelObjectStoreReader("s3://bucket/a", storage_options=options)
    assert reader._store_options == options
