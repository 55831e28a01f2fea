"""Missing pages of memory are made in one call, and its content stays."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from paraload.sources import Read
from paraload.sources import local as _local
from paraload.sources import pages as _pages
from paraload.sources.local import LocalSource
from paraload.sources.pages import populate

PAGE = mmap.PAGESIZE
PAGES = 256


@pytest.fixture
def fresh():
    """An untouched megabyte."""
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    yield memory
    memory.close()


def has_pages(memory):
    flags = (ctypes.c_ubyte * PAGES)()
    first = ctypes.c_char.from_buffer(memory)
    assert ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(memory)), flags) == 0
    del first
    return [bool(flag & 1) for flag in flags]


def test_fresh_memory_has_its_pages_afterwards(fresh):
    assert not any(has_pages(fresh))
    with memoryview(fresh) as memory:
        populate(memory)
    assert all(has_pages(fresh))
    assert bytes(fresh) == bytes(PAGES * PAGE)


def test_pages_that_are_shared_with_others_are_left_alone(fresh):
    with memoryview(fresh) as memory, memory[3 * PAGE + 100 : 200 * PAGE + 7] as part:
        populate(part)
    assert has_pages(fresh) == [4 <= number < 200 for number in range(PAGES)]


def test_little_memory_is_not_worth_it(fresh):
    with memoryview(fresh) as memory, memory[: _pages._MIN_BYTES - 1] as part:
        populate(part)
        populate(memory[:0])
    assert not any(has_pages(fresh))


def test_memory_that_has_pages_is_only_asked(fresh, monkeypatch):
    monkeypatch.setattr(_pages, "_madvise", None)
    fresh[PAGES // 2 * PAGE] = 7
    with memoryview(fresh) as memory:
        populate(memory)
    assert sum(has_pages(fresh)) == 1


def test_the_content_of_a_mapped_file_stays(tmp_path):
    content = bytes(range(256)) * (PAGES * PAGE // 256)
    (tmp_path / "file").write_bytes(content)
    with (
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory,
    ):
        with memoryview(memory) as view:
            populate(view)
        assert bytes(memory) == content
    assert (tmp_path / "file").read_bytes() == content


def test_an_older_kernel_s_refusal_changes_nothing(fresh, monkeypatch):
    monkeypatch.setattr(_pages, "_POPULATE_WRITE", 9999)
    with memoryview(fresh) as memory:
        populate(memory)
    assert not any(has_pages(fresh))


def test_other_systems_are_not_asked(fresh, monkeypatch):
    monkeypatch.setattr(_pages, "_mincore", None)
    with memoryview(fresh) as memory:
        populate(memory)
    assert not any(has_pages(fresh))


def test_every_local_read_does_it_first(tmp_path, fresh, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(PAGES * PAGE))
    had_pages = []
    preadv = _local.os.preadv

    def read(*arguments):
        had_pages.append(has_pages(fresh))
        return preadv(*arguments)

    monkeypatch.setattr(_local.os, "preadv", read)
    source = LocalSource(tmp_path)
    with memoryview(fresh) as memory, memory[: 128 * PAGE] as one, memory[128 * PAGE :] as other:
        source.read("file", [Read(0, [one, other])])
    source.close()
    assert had_pages == [[True] * PAGES]
