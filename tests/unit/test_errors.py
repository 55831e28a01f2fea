"""Errors say everything, and take it with them through pickle."""

from __future__ import annotations

import pickle

import pytest

from paraload import errors
from paraload.errors import CheckpointReadError, ItemReadError, ShortFileError, summarize

ITEM_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ItemReadError)
]


def example(kind=ItemReadError):
    return kind(
        "file ends too early",
        fqn="layers.0.weight",
        path="__0_0.distcp",
        start=10,
        end=20,
        expected="10 bytes",
        got="3 bytes",
        hint="Restore it",
        traceback_text="Traceback: here",
    )


def test_the_text_names_tensor_file_range_expected_got_and_the_next_step():
    assert str(example()) == (
        "'layers.0.weight': file ends too early (file '__0_0.distcp', bytes [10, 20));"
        " expected 10 bytes, got 3 bytes. Restore it"
    )


@pytest.mark.parametrize("kind", ITEM_ERRORS)
def test_item_errors_survive_pickle_with_everything(kind):
    error = example(kind)
    error.add_note("seen on rank 3")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_the_final_error_survives_pickle_with_failures_and_notes():
    error = summarize([example(), example(ShortFileError)], items=9, path="ckpt")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is CheckpointReadError
    assert str(back) == str(error)
    assert back.__notes__ == error.__notes__
    assert [type(failure) for failure in back.failures] == [ItemReadError, ShortFileError]


def test_the_final_error_lists_every_failure_and_each_traceback_once():
    failures = [example(), example()]
    failures[1].fqn = "layers.1.weight"
    error = summarize(failures, items=7, path="ckpt")
    assert "2 of 7 items" in str(error)
    assert "layers.0.weight" in str(error)
    assert "layers.1.weight" in str(error)
    assert len(error.__notes__) == 1
    assert "Traceback: here" in error.__notes__[0]


def test_very_many_failures_are_counted_rather_than_printed():
    error = summarize([example() for _ in range(60)], items=60, path="ckpt")
    assert "and 10 more" in str(error)
    assert len(error.failures) == 60


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.MissingFileError, FileNotFoundError),
        (errors.ShortFileError, EOFError),
        (errors.FormatError, ValueError),
        (errors.ShapeMismatchError, ValueError),
        (errors.HookNotPicklableError, TypeError),
        (errors.MissingMetadataError, FileNotFoundError),
    ],
)
def test_errors_can_be_caught_by_the_builtin_that_they_are(kind, builtin):
    assert issubclass(kind, builtin)


def test_locating_fills_in_only_what_is_not_known():
    error = ItemReadError("broken", path="a", start=1, end=2)
    error.locate(fqn="w", path="b", start=5, end=6)
    assert (error.fqn, error.path, error.start, error.end) == ("w", "a", 1, 2)
