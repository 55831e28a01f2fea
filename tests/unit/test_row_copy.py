"""Rows copied out of the page cache by the kernel, against rows copied one by one."""

from __future__ import annotations

import errno
import os
import random
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.page_cache import ensure_cold, resident_fraction
from paraload.errors import MissingFileError
from paraload.geometry import runs as geometry
from paraload.geometry.runs import Run
from paraload.sources import local as _local
from paraload.sources import row_copy as _rows
from paraload.sources.local import LocalSource
from paraload.sources.pages import FileView
from paraload.sources.row_copy import copy_rows

SIZE = 3 << 20
DATA = random.Random(11).randbytes(SIZE)
ROOM = 400_000
#: More rows than one call takes; they lie in the first MiB.
MANY = Run(7, 3, 100, 2500, 400, 100)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def fd(file):
    file.read_bytes()
    fd = os.open(file, os.O_RDONLY)
    yield fd
    os.close(fd)


def one_by_one(run, base=0):
    target = bytearray(b"\xa5" * ROOM)
    for src, dst, nbytes in geometry.rows([run]):
        target[dst : dst + nbytes] = DATA[base + src : base + src + nbytes]
    return target


@st.composite
def series(draw):
    nbytes = draw(st.integers(1, 130))
    count = draw(st.integers(1, 1500))
    return Run(
        src=draw(st.integers(0, 9000)),
        dst=draw(st.integers(0, 50)),
        nbytes=nbytes,
        count=count,
        src_step=nbytes + draw(st.integers(0, 1500)),
        dst_step=nbytes + draw(st.sampled_from([0, 0, 1, 100])),
    )


@settings(max_examples=200)
@example(MANY, 5000, True)
@given(series(), st.integers(0, 5000), st.booleans())
def test_rows_are_where_they_belong_and_nothing_else_is_touched(file, run, base, told):
    target = bytearray(b"\xa5" * ROOM)
    with file.open("rb") as opened:
        calls = copy_rows(opened.fileno(), base, run, memoryview(target), residency_known=told)
    assert calls == -(-run.count // 1024)
    assert target == one_by_one(run, base)


@pytest.mark.parametrize(
    "run",
    [
        Run(0, 1, 100, 4000, 200, 100),  # the last byte is one too far
        Run(0, 0, 100, 2000, 200, 201),
        Run(0, -1, 100, 20, 200, 100),
    ],
)
def test_rows_outside_of_their_memory_are_refused(fd, run):
    around = bytearray(b"\xa5" * (ROOM + 400_000))
    memory = memoryview(around)[200_000 : 200_000 + ROOM]
    with pytest.raises((TypeError, ValueError)):
        copy_rows(fd, 0, run, memory, residency_known=True)
    assert around == b"\xa5" * len(around)


def test_read_only_memory_stays_unchanged(fd):
    frozen = bytes(ROOM)
    with pytest.raises(TypeError, match="not writable"):
        copy_rows(fd, 0, MANY, memoryview(frozen), residency_known=True)
    assert frozen == bytes(ROOM)


@pytest.mark.parametrize("told", [True, False])
def test_a_truncated_file_is_copied_to_its_end_without_a_crash(tmp_path, told):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    target = bytearray(ROOM)
    with path.open("r+b") as file:
        file.truncate(600_000)  # behind the row in the middle of the second thousand
        assert copy_rows(file.fileno(), 0, MANY, memoryview(target), residency_known=told) == 0
        file.truncate(500)  # what lies behind it in its page is zeros
        one_page = Run(0, 0, 10, 16, 100, 10)
        assert copy_rows(file.fileno(), 0, one_page, memoryview(target), residency_known=told) == 0
        file.truncate(0)
        assert copy_rows(file.fileno(), 0, MANY, memoryview(target), residency_known=told) == 0


@pytest.mark.parametrize("told", [True, False])
def test_what_is_not_cached_is_left_to_be_read_through(file, told):
    ensure_cold([file])
    target = bytearray(ROOM)
    with file.open("rb") as opened:
        assert copy_rows(opened.fileno(), 0, MANY, memoryview(target), residency_known=told) == 0
    assert not any(target)
    if told:  # to try is to begin to read
        assert resident_fraction([file]) == 0


def no_view(*_arguments):
    raise OSError("No such device")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_writev", None),
        ("_writev", lambda *_: -1),
        ("_writev", lambda *_: 10),
        ("FileView", no_view),
    ],
    ids=["another system", "forbidden", "a short copy", "a file system without mappings"],
)
def test_on_a_system_without_it(fd, monkeypatch, name, value):
    monkeypatch.setattr(_rows, name, value)
    assert copy_rows(fd, 0, MANY, memoryview(bytearray(ROOM)), residency_known=True) == 0


def test_a_file_system_that_does_not_know_what_can_read_at_once(fd, monkeypatch):
    def refusing(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refusing)
    assert copy_rows(fd, 0, MANY, memoryview(bytearray(ROOM)), residency_known=False) == 0
    assert copy_rows(fd, 0, MANY, memoryview(bytearray(ROOM)), residency_known=True) == 3


@pytest.mark.parametrize("told", [True, False])
def test_each_thousand_of_rows_is_checked(fd, monkeypatch, told):
    looks = []

    def only_once(*_arguments):
        looks.append(None)
        return len(looks) == 1

    monkeypatch.setattr(FileView, "is_cached", only_once)
    monkeypatch.setattr(_rows, "_can_read_at_once", only_once)
    assert copy_rows(fd, 0, MANY, memoryview(bytearray(ROOM)), residency_known=told) == 0
    assert len(looks) == 2


def test_no_view_of_the_file_is_left(file, fd, monkeypatch):
    memory = memoryview(bytearray(ROOM))
    copy_rows(fd, 0, MANY, memory, residency_known=True)
    monkeypatch.setattr(_rows, "_writev", None)
    copy_rows(fd, 0, MANY, memory, residency_known=True)
    monkeypatch.setattr(_rows, "_writev", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copy_rows(fd, 0, MANY, memory, residency_known=True)
    assert str(file) not in Path("/proc/self/maps").read_text()


# ------------------------------------------------------------------- through the source


def test_a_source_counts_the_calls(file):
    file.read_bytes()
    target = bytearray(b"\xa5" * ROOM)
    with closing(LocalSource(file.parent)) as source:
        stats = source.read_rows("file", 4, MANY, memoryview(target))
    assert stats == (3, 0, "")
    assert target == one_by_one(MANY, 4)


def test_rows_behind_the_end_of_the_file_are_for_reads_to_complain_about(file, monkeypatch):
    monkeypatch.setattr(_local, "copy_rows", None)
    last = Run(SIZE - 1000, 0, 100, 10, 100, 100)
    with closing(LocalSource(file.parent)) as source:
        assert source.read_rows("file", 1, last, memoryview(bytearray(ROOM))) is None
        with pytest.raises(TypeError):  # it ends with the file, and would be copied
            source.read_rows("file", 0, last, memoryview(bytearray(ROOM)))


@pytest.mark.parametrize("told", [lambda path: False, no_view], ids=["no", "unknown"])
def test_without_residency_information_it_is_tried(file, monkeypatch, told):
    monkeypatch.setattr(_local, "residency_is_known", told)
    file.read_bytes()
    target = bytearray(b"\xa5" * ROOM)
    with closing(LocalSource(file.parent)) as source:
        assert source.read_rows("file", 4, MANY, memoryview(target)) == (3, 0, "")
        monkeypatch.setattr(_rows, "_can_read_at_once", lambda *_: False)
        assert source.read_rows("file", 4, MANY, memoryview(target)) is None
    assert target == one_by_one(MANY, 4)


def test_a_missing_file_is_named(file):
    with closing(LocalSource(file.parent)) as source, pytest.raises(MissingFileError, match="gone"):
        source.read_rows("gone", 0, MANY, memoryview(bytearray(ROOM)))
