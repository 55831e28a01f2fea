"""The page cache of files: seen, emptied, and the reasons where it cannot be."""

from __future__ import annotations

import pytest

from paraload.cli import _page_cache as page_cache


@pytest.fixture
def ranges(tmp_path):
    """Most of a file that is in the cache and on the disk."""
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * 4096))
    found = [page_cache.FileRange(path, 4096 + 5, 16 * 4096)]
    page_cache._flush(found)
    return found


@pytest.fixture(autouse=True)
def the_machines_cache_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(page_cache, "DROP_CACHES", tmp_path / "not-there" / "drop_caches")


def test_what_is_in_the_cache_is_seen(ranges):
    assert page_cache.resident_fraction(ranges) == 1.0
    page_cache._advise(ranges)
    assert page_cache.resident_fraction(ranges) == 0.0


def test_advice_is_taken_where_it_is_seen_to_work(ranges):
    way = page_cache.cold_cache(ranges)
    assert way.method == "posix_fadvise(DONTNEED)"
    ranges[0].path.read_bytes()
    way.drop()
    assert page_cache.resident_fraction(ranges) == 0.0


def test_the_machines_cache_is_dropped_where_advice_does_not_help(ranges, monkeypatch, tmp_path):
    real = page_cache._advise
    monkeypatch.setattr(page_cache, "_advise", lambda ranges: None)
    monkeypatch.setattr(page_cache, "DROP_CACHES", tmp_path / "drop_caches")
    monkeypatch.setattr(page_cache, "_drop_all", lambda: real(ranges))
    assert page_cache.cold_cache(ranges).method == str(tmp_path / "drop_caches")


def test_a_hint_that_nobody_can_check_is_called_one(ranges, monkeypatch):
    # A file of somebody else.
    monkeypatch.setattr(page_cache, "residency_is_told", lambda path: False)
    assert page_cache.resident_fraction(ranges) is None
    assert page_cache.cold_cache(ranges).note.startswith("only a hint")


def test_where_nothing_works_every_attempt_is_told(ranges, monkeypatch):
    monkeypatch.setattr(page_cache, "_advise", lambda ranges: None)
    with pytest.raises(page_cache.NoColdCacheError) as refused:
        page_cache.cold_cache(ranges)
    advised, dropped = str(refused.value).split("; ")
    assert advised == "posix_fadvise(DONTNEED): 100% of the bytes stayed in the page cache"
    assert dropped.endswith("drop_caches: No such file or directory")


def test_a_file_that_is_not_there_is_a_reason(tmp_path):
    ranges = [page_cache.FileRange(tmp_path / "gone", 0, 10)]
    with pytest.raises(page_cache.NoColdCacheError, match="cannot be flushed: No such file"):
        page_cache.cold_cache(ranges)
