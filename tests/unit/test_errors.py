"""Errors have all details, and keep them through pickle."""

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


def failure(kind=ShortFileError, **parts):
    return kind(**{"problem": "broken", "path": "a", "start": 0, "end": 8, **parts})


def lines(failures):
    failures = list(failures)
    error = summarize(failures, items=9, path="ckpt")
    assert len(pickle.loads(pickle.dumps(error)).failures) == len(failures)
    return str(error).splitlines()[1:]


def test_items_with_one_cause_are_one_line_with_three_names():
    hint = "Is the checkpoint in 'ckpt' complete?"
    missing = [
        failure(errors.MissingFileError, problem="file is missing", fqn=f"w{n}", end=n, hint=hint)
        for n in range(400)
    ]
    assert lines(missing) == [
        (
            "  - MissingFileError: file is missing (file 'a', 400 items: 'w0', 'w1', 'w2' and 397"
            f" more). {hint}"
        )
    ]
    assert lines(missing[:2]) == [
        f"  - MissingFileError: file is missing (file 'a', 2 items: 'w0', 'w1'). {hint}"
    ]


def test_a_line_of_several_items_has_what_they_have_in_common():
    cut = [failure(fqn=f"w{n}", expected=f"{n} bytes", got="3 bytes") for n in range(2)]
    assert lines(cut) == [
        "  - ShortFileError: broken (file 'a', bytes [0, 8), 2 items: 'w0', 'w1'), got 3 bytes"
    ]
    cast = [failure(fqn=f"w{n}", expected=f"int{n}", got=f"float{n}") for n in (8, 16)]
    assert lines(cast)[0].endswith("'w8', 'w16'); for 'w8', expected int8, got float8")
    chunks = [failure(fqn="w", path=None) for _ in range(4)]
    assert lines(chunks) == ["  - ShortFileError: broken (4 items of 1 tensor: 'w')"]
    assert lines([failure(path=None), failure(path=None)]) == [
        "  - ShortFileError: broken (2 items)"
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ("no key for {}", "no key for {}"),
        ("no part at (0, 0)", "no part at (12,)"),
        ("needs 10 bytes", "needs 7 bytes"),
    ],
)
def test_texts_that_differ_only_in_names_and_numbers_are_one_cause(texts):
    failures = [
        failure(fqn=name, problem=text.format(name)) for name, text in zip("qk", texts, strict=True)
    ]
    assert len(lines(failures)) == 1


def test_other_files_classes_and_problems_have_lines_of_their_own_in_the_order_of_the_plan():
    failures = [
        failure(fqn="1"),
        failure(fqn="2", path="b"),
        failure(fqn="3", kind=errors.FormatError),
        failure(fqn="4", problem="torn"),
        failure(fqn="5"),
    ]
    assert [line.split()[1:3] for line in lines(failures)] == [
        ["ShortFileError:", "broken"],
        ["ShortFileError:", "'2':"],
        ["FormatError:", "'3':"],
        ["ShortFileError:", "'4':"],
    ]


def test_beyond_20_causes_the_rest_is_counted_and_no_file_is_hidden():
    one_file = [failure(fqn="w", problem="x" * n) for n in range(60)]
    shown = lines([*one_file, failure(path="b", fqn="last"), failure(path="c", fqn="end")])
    assert len(shown) == 21
    assert shown[-1] == "  - and 42 more items in 1 file; this error's `failures` has all"
    assert [line for line in shown if "'last'" in line or "'end'" in line] == shown[-3:-1]
    many = lines(failure(path=str(n)) for n in range(50))
    assert many[-1] == "  - and 30 more items in 30 files; this error's `failures` has all"


def test_one_item_is_counted_as_one():
    assert str(summarize([example()], items=1, path="ckpt")).startswith("1 of 1 item of")
    assert "cannot fill 1 of 1 item;" in str(errors.refuse_to_begin([example()], items=1, path=""))


@pytest.mark.parametrize("hint", ["Is it complete?", "Restore it", "Restore it."])
def test_a_hint_gets_no_second_full_stop(hint):
    for text in (str(failure(hint=hint)), *lines([failure(hint=hint), failure(hint=hint)])):
        assert text.endswith(f". {hint}")
    assert str(failure(problem="Whose?", path=None, hint=hint)) == f"Whose? {hint}"


def test_only_tracebacks_of_unexpected_errors_are_noted():
    for kind in ITEM_ERRORS:
        error = summarize([example(kind)], items=1, path="ckpt")
        assert hasattr(error, "__notes__") == (kind is ItemReadError), kind
    hooked = example(errors.TransformError)
    hooked.hint = None  # raised by a transform of the user's
    assert "Traceback: here" in summarize([hooked], items=1, path="ckpt").__notes__[0]


ODD = "a\x1b[31m\n\u202eb\udc80\x9b ü"
SHOWN = "a\\x1b[31m\\n\\u202eb\\udc80\\x9b ü"


def test_control_characters_are_shown_as_escapes():
    parts = dict.fromkeys(("problem", "fqn", "path", "expected", "got", "hint"), ODD)
    single = ItemReadError(**parts, traceback_text=f"Traceback {ODD}")
    for error in (
        single,
        summarize([single], items=1, path=ODD),
        summarize([single, single], items=2, path=ODD),
        errors.MetadataError(ODD, ODD),
        errors.UnsafeMetadataError(ODD, ODD, ODD),
        CheckpointReadError(ODD.replace("\n", "")),
    ):
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        assert SHOWN.partition("\\n")[0] in text
        assert SHOWN.partition("\\n")[2] in text
        assert text.replace("\n", "").isprintable()
    assert "\n" not in str(single)


@pytest.mark.parametrize("kind", [errors.InvalidOptionError, errors.HookNotPicklableError])
def test_a_wrong_call_is_not_a_bad_checkpoint_and_survives_pickle(kind):
    assert issubclass(kind, ValueError)
    assert not issubclass(kind, CheckpointReadError)
    error = kind("executor='thread'")
    error.add_note("seen on rank 3")
    error.option = "executor"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), vars(back)) == (str(error), vars(error))


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


def test_failures_without_a_file_are_all_named():
    """Each missing key needs its own fix; the items of a missing file have one fix."""
    key = errors.MissingKeyError
    shown = lines([key("no such name", fqn=f"w{n}", hint=f"Is it v{n}?") for n in range(10)])
    assert shown == [f"  - MissingKeyError: 'w{n}': no such name. Is it v{n}?" for n in range(10)]
    [many] = lines([key("no such name", fqn=f"w{n}") for n in range(100)])
    assert all(f"'w{n}'" in many for n in range(100))
    [most] = lines([key("no such name", fqn=f"w{n}") for n in range(1000)])
    assert most.endswith("'w99' and 900 more)")
