"""Rows copied out of the page cache, with a lease and without, against rows copied one by one."""

from __future__ import annotations

import errno
import os
import random
import threading
from contextlib import closing
from dataclasses import replace
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


@pytest.fixture(autouse=True)
def any_rows(monkeypatch):
    """Rows are copied even if reading through so few of them would be faster."""
    monkeypatch.setattr(_rows, "_MIN_BYTES", 0)
    monkeypatch.setattr(_rows, "_MAX_LEASED_PART", 4)
    monkeypatch.setattr(_rows, "_PACKED_ROW_COSTS_BYTES", -SIZE)
    monkeypatch.setattr(_rows, "_SPREAD_ROW_COSTS_BYTES", -SIZE)


LEASED = pytest.mark.parametrize("leased", [True, False], ids=["leased", "by the system"])


def copied(fd, run, memory, base=0, *, leased, told=True):
    wanted = [(run, memoryview(memory))]
    return copy_rows(fd, base, wanted, residency_known=told, may_lease=leased)


def one_by_one(run, base=0):
    target = bytearray(b"\xa5" * ROOM)
    for src, dst, nbytes in geometry.rows([run]):
        target[dst : dst + nbytes] = DATA[base + src : base + src + nbytes]
    return target


@st.composite
def series(draw):
    nbytes = draw(st.integers(1, 130))
    count = draw(st.integers(8, 1500))
    return Run(
        src=draw(st.integers(0, 9000)),
        dst=draw(st.integers(0, 50)),
        nbytes=nbytes,
        count=count,
        src_step=nbytes + draw(st.integers(0, 1500)),
        dst_step=nbytes + draw(st.sampled_from([0, 0, 1, 100])),
    )


@settings(max_examples=200)
@example(MANY, 5000, True, True)
@example(MANY, 5000, True, False)
@given(series(), st.integers(0, 5000), st.booleans(), st.booleans())
def test_rows_are_where_they_belong_and_nothing_else_is_touched(file, run, base, told, leased):
    target = bytearray(b"\xa5" * ROOM)
    with file.open("rb") as opened:
        copies = copied(opened.fileno(), run, target, base, told=told, leased=leased)
    assert copies == -(-run.count // 1024)
    assert target == one_by_one(run, base)


@LEASED
def test_several_take_their_columns_of_the_same_rows(fd, leased):
    runs = [MANY, replace(MANY, src=90, nbytes=7, dst_step=9), replace(MANY, src=300, dst=0)]
    targets = [bytearray(b"\xa5" * ROOM) for _ in runs]
    wanted = list(zip(runs, map(memoryview, targets), strict=True))
    assert copy_rows(fd, 11, wanted, residency_known=True, may_lease=leased) == 9
    assert targets == [one_by_one(run, 11) for run in runs]


@pytest.mark.parametrize(
    "run",
    [
        Run(0, 1, 100, 4000, 200, 100),  # the last byte is one too far
        Run(0, 0, 100, 2000, 200, 201),
        Run(0, -1, 100, 20, 200, 100),
    ],
)
@LEASED
def test_rows_outside_of_their_memory_are_refused(fd, run, leased):
    around = bytearray(b"\xa5" * (ROOM + 400_000))
    memory = memoryview(around)[200_000 : 200_000 + ROOM]
    with pytest.raises((TypeError, ValueError)):
        copied(fd, run, memory, leased=leased)
    assert around == b"\xa5" * len(around)


@LEASED
def test_read_only_memory_stays_unchanged(fd, leased):
    frozen = bytes(ROOM)
    with pytest.raises(TypeError, match="not writable"):
        copied(fd, MANY, frozen, leased=leased)
    assert frozen == bytes(ROOM)


@LEASED
@pytest.mark.parametrize("told", [True, False])
def test_a_truncated_file_is_copied_to_its_end_without_a_crash(tmp_path, told, leased):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    target = bytearray(ROOM)
    with path.open("rb") as file:

        def copies(run):
            return copied(file.fileno(), run, target, told=told, leased=leased)

        os.truncate(path, 600_000)  # behind the row in the middle of the second thousand
        assert copies(MANY) == 0
        os.truncate(path, 500)  # what lies behind it in its page is zeros
        assert copies(Run(0, 0, 10, 16, 100, 10)) == 0
        os.truncate(path, 0)
        assert copies(MANY) == 0


@pytest.mark.parametrize("told", [True, False])
def test_a_file_that_is_truncated_at_the_worst_moment_is_no_crash(tmp_path, monkeypatch, told):
    """Without a lease, after all that was checked; the kernel copies what is still there."""
    path = tmp_path / "file"
    path.write_bytes(DATA)

    class Cut(FileView):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            os.truncate(path, 500_000)

    monkeypatch.setattr(_rows, "FileView", Cut)
    with path.open("rb") as file:
        target = bytearray(ROOM)
        assert copied(file.fileno(), MANY, target, told=told, leased=False) == 0


def test_nobody_can_truncate_a_leased_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    cut = threading.Thread(target=os.truncate, args=(path, 500))

    class Slow(FileView):
        def load(self, start, nbytes):
            loaded = super().load(start, nbytes)
            if not start:
                cut.start()
                cut.join(0.1)
            with pytest.raises(BlockingIOError):
                os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            return loaded

    monkeypatch.setattr(_rows, "FileView", Slow)
    target = bytearray(b"\xa5" * ROOM)
    with path.open("rb") as file:
        assert copied(file.fileno(), MANY, target, leased=True) == 3
    assert target == one_by_one(MANY)
    cut.join(10)
    assert path.stat().st_size == 500  # it waited, and no signal ended this process


def test_a_file_that_is_open_for_writing_is_not_leased(file):
    with file.open("r+b") as opened:
        os.preadv(opened.fileno(), [bytearray(SIZE)], 0)
        with _rows._leased(opened.fileno()) as is_leased:
            assert not is_leased
        target = bytearray(b"\xa5" * ROOM)
        assert copied(opened.fileno(), MANY, target, leased=True) == 3
    assert target == one_by_one(MANY)
    with file.open("rb") as opened, _rows._leased(opened.fileno()) as is_leased:
        assert is_leased


@LEASED
@pytest.mark.parametrize("told", [True, False])
def test_what_is_not_cached_is_left_to_be_read_through(file, told, leased):
    ensure_cold([file])
    target = bytearray(ROOM)
    with file.open("rb") as opened:
        assert copied(opened.fileno(), MANY, target, told=told, leased=leased) == 0
    assert not any(target)
    if told:  # to try is to begin to read
        assert resident_fraction([file]) == 0


COLUMNS = Run(0, 0, 1408, 4096, 11264, 1408)


@pytest.mark.parametrize(
    ("wanted", "leased", "by_system"),
    [
        ([COLUMNS], True, True),
        ([replace(COLUMNS, count=7)], False, False),
        ([replace(COLUMNS, nbytes=9_300, dst_step=9_300)], False, False),  # little lies between
        ([replace(COLUMNS, dst_step=1409)], True, False),  # scattered, and little lies between
        ([replace(COLUMNS, dst_step=1409, src_step=20_000)], True, True),
        (
            [replace(COLUMNS, nbytes=17_000, dst_step=17_000, src_step=100_000)],
            False,
            False,
        ),  # long
        ([replace(COLUMNS, src_step=600_000)], False, False),  # far apart
        ([replace(COLUMNS, src_step=66_000)], False, True),
        ([replace(COLUMNS, src_step=1000)], False, False),  # rows that overlap in the file
        ([replace(COLUMNS, src_step=4096)], True, False),  # reading through is cheap
        ([replace(COLUMNS, src_step=20_000)] * 2, True, True),
        ([replace(COLUMNS, src_step=20_000)] * 3, True, False),  # each costs a search of the cache
        ([replace(COLUMNS, count=8, nbytes=100, src_step=800)], False, False),  # all in one read
    ],
)
def test_how_rows_are_copied(tmp_path, monkeypatch, wanted, leased, by_system):
    monkeypatch.undo()  # what things cost is the subject here
    used = []
    monkeypatch.setattr(_rows._Pages, "copy", lambda self, *_: used.append(self.is_leased) or True)
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 4 << 30)
    memory = memoryview(bytearray(17_000 * 4096))
    wanted = [(run, memory) for run in wanted]
    with path.open("rb") as file:
        for may_lease in (True, False):
            used.clear()
            copies = copy_rows(file.fileno(), 5, wanted, residency_known=True, may_lease=may_lease)
            assert (copies > 0) == (by_system or (may_lease and leased))
            assert set(used) == ({may_lease and leased} if copies else set())


def no_view(*_arguments):
    raise OSError("No such device")


@pytest.mark.parametrize(
    ("name", "value"),
    [("_writev", None), ("_writev", lambda *_: -1), ("FileView", no_view)],
    ids=["another system", "forbidden", "a file system without mappings"],
)
def test_on_a_system_without_it(fd, monkeypatch, name, value):
    monkeypatch.setattr(_rows, name, value)
    assert copied(fd, MANY, bytearray(ROOM), leased=False) == 0


def cannot_load(*_arguments):
    return False


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [(_rows, "FileView", no_view), (FileView, "load", cannot_load)],
    ids=["a file system without mappings", "an old kernel, or a page that the disk cannot read"],
)
def test_leased_pages_that_cannot_be_mapped_are_left_to_be_read(
    fd, monkeypatch, owner, name, value
):
    monkeypatch.setattr(owner, name, value)
    assert copied(fd, MANY, bytearray(ROOM), leased=True) == 0


def test_a_system_without_leases(fd, monkeypatch):
    monkeypatch.setattr(_rows, "fcntl", None)
    target = bytearray(b"\xa5" * ROOM)
    assert copied(fd, MANY, target, leased=True) == 3
    assert target == one_by_one(MANY)


@LEASED
def test_a_file_system_that_does_not_know_what_can_read_at_once(fd, monkeypatch, leased):
    def refusing(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refusing)
    assert copied(fd, MANY, bytearray(ROOM), told=False, leased=leased) == 0
    assert copied(fd, MANY, bytearray(ROOM), leased=leased) == 3


def test_no_view_and_no_lease_of_the_file_is_left(file, fd, monkeypatch):
    memory = bytearray(ROOM)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    copied(fd, MANY, memory, leased=True)
    copied(fd, MANY, memory, leased=False)
    monkeypatch.setattr(_rows, "_writev", None)
    copied(fd, MANY, memory, leased=False)
    monkeypatch.setattr(_rows, "_writev", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copied(fd, MANY, memory, leased=False)
    monkeypatch.setattr(_rows, "copy_runs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copied(fd, MANY, memory, leased=True)
    assert str(file) not in Path("/proc/self/maps").read_text()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


# ------------------------------------------------------------------- through the source


def test_a_source_counts_the_calls(file):
    file.read_bytes()
    target = bytearray(b"\xa5" * ROOM)
    with closing(LocalSource(file.parent)) as source:
        stats = source.read_rows("file", 4, [(MANY, memoryview(target))])
    assert stats == (3, 0, "")
    assert target == one_by_one(MANY, 4)


def test_rows_behind_the_end_of_the_file_are_for_reads_to_complain_about(file):
    file.read_bytes()
    last = Run(SIZE - 1000, 0, 100, 10, 100, 100)
    with closing(LocalSource(file.parent)) as source:
        assert source.read_rows("file", 1, [(last, memoryview(bytearray(ROOM)))]) is None
        # This one ends with the file.
        assert source.read_rows("file", 0, [(last, memoryview(bytearray(ROOM)))]) == (1, 0, "")


def test_files_of_a_network_are_not_leased(file, monkeypatch):
    asked = []
    monkeypatch.setattr(_local, "is_network_path", lambda path: True)
    monkeypatch.setattr(_local, "copy_rows", lambda *_, may_lease, **__: asked.append(may_lease))
    with closing(LocalSource(file.parent)) as source:
        assert source.read_rows("file", 0, [(MANY, memoryview(bytearray(ROOM)))]) is None
    assert asked == [False]  # another host may truncate them


@pytest.mark.parametrize("told", [lambda path: False, no_view], ids=["no", "unknown"])
def test_without_residency_information_it_is_tried(file, monkeypatch, told):
    monkeypatch.setattr(_local, "residency_is_known", told)
    file.read_bytes()
    target = bytearray(b"\xa5" * ROOM)
    with closing(LocalSource(file.parent)) as source:
        assert source.read_rows("file", 4, [(MANY, memoryview(target))]) == (3, 0, "")
        monkeypatch.setattr(_rows, "_can_read_at_once", lambda *_: False)
        assert source.read_rows("file", 4, [(MANY, memoryview(target))]) is None
    assert target == one_by_one(MANY, 4)


def test_a_missing_file_is_named(file):
    with closing(LocalSource(file.parent)) as source, pytest.raises(MissingFileError, match="gone"):
        source.read_rows("gone", 0, [(MANY, memoryview(bytearray(ROOM)))])
