"""Reading past the page cache: the same bytes from any offset, and a fallback."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import random
import re
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.page_cache import ensure_cold, resident_fraction
from paraload.errors import ShortFileError
from paraload.sources import Read
from paraload.sources import direct_io as _direct
from paraload.sources import local as _local
from paraload.sources.local import LocalSource
from paraload.sources.pages import address_of

MIB = 1 << 20
SIZE = 9 * MIB + 12_345
DATA = random.Random(11).randbytes(SIZE)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("direct") / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def source(file):
    source = LocalSource(file.parent, direct_io=True)
    ensure_cold([file])
    yield source
    source.close()


def read(source, start, nbytes, at=0):
    """The content of a buffer whose bytes [at, at + nbytes) alone were filled."""
    memory = bytearray(b"\xa5" * (at + nbytes + 5))
    with memoryview(memory) as view, view[at : at + nbytes] as buffer:
        stats = source.read("file", [Read(start, [buffer])])
    assert memory[:at] == b"\xa5" * at
    assert memory[at + nbytes :] == b"\xa5" * 5
    return stats, bytes(memory[at : at + nbytes])


@settings(max_examples=60)
@example(start=4095, nbytes=4 * MIB, at=0)
@given(
    start=st.integers(0, SIZE - _direct.MIN_BYTES),
    nbytes=st.integers(_direct.MIN_BYTES, SIZE),
    at=st.integers(0, 70),
)
def test_any_range_is_right_and_leaves_the_cache_empty(file, start, nbytes, at):
    ensure_cold([file])  # what the examples read does not bring it back
    nbytes = min(nbytes, SIZE - start)
    with closing(LocalSource(file.parent, direct_io=True)) as source:
        stats, data = read(source, start, nbytes, at)
    assert data == DATA[start : start + nbytes]
    assert stats.bytes_direct == nbytes
    assert stats.requests == -(-nbytes // _direct.READ_BYTES)
    assert not stats.fallback
    assert resident_fraction([file]) == 0


def test_what_is_cached_is_taken_from_there(file, source):
    file.read_bytes()
    stats, data = read(source, 3, 2 * MIB)
    assert data == DATA[3 : 3 + 2 * MIB]
    assert stats.bytes_direct == 0
    assert not stats.fallback


def test_residency_of_a_file_of_another_user_is_unknown(file, monkeypatch):
    monkeypatch.setattr(_local, "residency_is_known", lambda path: False)
    file.read_bytes()
    with closing(LocalSource(file.parent, direct_io=True)) as source:
        stats, data = read(source, 3, 2 * MIB)
    assert data == DATA[3 : 3 + 2 * MIB]
    assert stats.bytes_direct == 2 * MIB


@pytest.mark.parametrize("sizes", [[_direct.MIN_BYTES - 1], [2 * MIB, 2 * MIB], [10]])
def test_short_and_scattered_reads_go_by_the_cache(source, sizes):
    buffers = [bytearray(size) for size in sizes]
    stats = source.read("file", [Read(1, [memoryview(buffer) for buffer in buffers])])
    assert b"".join(buffers) == DATA[1 : 1 + sum(sizes)]
    assert stats.bytes_direct == 0


@pytest.mark.parametrize("at_once", [4096, 5000, MIB + 1])
def test_short_reads_of_the_system_are_gone_on_with(source, monkeypatch, at_once):
    whole = os.preadv
    source.read("file", [Read(0, [memoryview(bytearray(1))])])

    def short(fd, buffers, at):
        assert at % 4096 == 0
        return min(whole(fd, buffers, at), at_once)

    monkeypatch.setattr(os, "preadv", short)
    stats, data = read(source, 4095, 2 * MIB)
    assert data == DATA[4095 : 4095 + 2 * MIB]
    assert stats.requests >= 2 * MIB // at_once


def test_it_ends_with_the_file(source):
    with pytest.raises(ShortFileError, match=rf"'file'.*\[{SIZE - MIB}, {SIZE + 1}\)"):
        read(source, SIZE - MIB, MIB + 1)


def test_a_file_system_that_does_not_open_files_so(file, monkeypatch):
    really = os.open

    def refusing(path, flags, *arguments, **keywords):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refusing)
    source = LocalSource(file.parent, direct_io=True)
    stats, data = read(source, 5, MIB)
    source.close()
    assert data == DATA[5 : 5 + MIB]
    assert stats == (1, 0, "no O_DIRECT here (Invalid argument)")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_opens_files_so_and_reads_none(source, monkeypatch, code):
    really = os.preadv
    direct_fds = []

    def refusing(fd, buffers, at):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            direct_fds.append(fd)
            raise OSError(code, os.strerror(code))
        return really(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", refusing)
    for _ in range(2):
        stats, data = read(source, 5, MIB)
        assert data == DATA[5 : 5 + MIB]
        assert stats == (1, 0, f"no O_DIRECT here ({os.strerror(code)})")
    assert len(direct_fds) == 1  # it is not asked again
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(direct_fds[0])


def test_other_errors_are_errors(source, monkeypatch):
    def broken(fd, buffers, at):
        raise OSError(errno.EIO, "Input/output error")

    source.read("file", [Read(0, [memoryview(bytearray(1))])])
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(OSError, match="Input/output"):
        read(source, 5, MIB)


def test_the_opened_file_is_read_even_if_it_is_renamed(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(DATA)
    other.write_bytes(bytes(SIZE))
    ensure_cold([path])
    fd = os.open(path, os.O_RDONLY)
    other.rename(path)
    direct = _direct.DirectFile(fd, SIZE, residency_known=True)
    buffer = bytearray(MIB)
    direct.read_into(0, memoryview(buffer), _direct.Scratch().memory)
    direct.close()
    os.close(fd)
    assert buffer == DATA[:MIB]


def test_nothing_stays_open_or_mapped(file, source):
    for _ in range(3):
        read(source, 5, MIB)
        source.drop_handle("file")
    read(source, 5, MIB)
    source.close()
    source.close()  # descriptors are looked at after every test
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(file) not in maps.read()


def test_an_empty_file_is_fine(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    source = LocalSource(tmp_path, direct_io=True)
    with pytest.raises(ShortFileError):
        source.read("empty", [Read(0, [memoryview(bytearray(MIB))])])
    source.close()


def test_each_thread_has_its_own_scratch(source):
    answers = {}

    def context(number):
        answers[number] = read(source, number * 1000, 3 * MIB)[1]

    threads = [threading.Thread(target=context, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[n] == DATA[n * 1000 : n * 1000 + 3 * MIB] for n in range(8))


def test_scratch_is_asked_for_in_huge_pages():
    memory = _direct.Scratch().memory
    assert len(memory) > _direct.READ_BYTES
    address = address_of(memory)
    assert address % (2 * MIB) == 0
    with open("/proc/self/smaps", encoding="ascii") as maps:
        for line in maps:
            if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                is_here = int(span[1], 16) <= address < int(span[2], 16)
            elif line.startswith("VmFlags:") and is_here:
                flags = line.split()
    has_huge_pages = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert ("hg" in flags) == has_huge_pages
    assert "sh" not in flags  # a child that was forked has its own


def test_it_travels(source):
    twin = pickle.loads(pickle.dumps(source))
    assert read(twin, 5, MIB)[0].bytes_direct == MIB
    twin.close()
