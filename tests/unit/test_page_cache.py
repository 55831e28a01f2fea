"""The page cache of files: inspected and emptied, or the reason why not."""

from __future__ import annotations

import os

import pytest

from paraload.cli.bench import page_cache


@pytest.fixture
def files(tmp_path):
    """A file that is in the cache and on the disk, and an empty one."""
    (tmp_path / "file").write_bytes(bytes(16 * 4096 + 5))
    (tmp_path / "empty").touch()
    os.sync()
    return [tmp_path / "file", tmp_path / "empty"]


def test_what_is_in_the_cache_is_seen(files):
    assert page_cache.resident_fraction(files) == 1.0
    page_cache.drop(files)
    assert page_cache.resident_fraction(files) == 0.0


def test_advice_is_taken_where_it_is_seen_to_work(files):
    works, how = page_cache.try_drop(files)
    assert works
    assert how == "posix_fadvise(DONTNEED), seen to work for these files"
    files[0].read_bytes()
    assert page_cache.resident_fraction(files) == 1.0
    page_cache.drop(files)
    assert page_cache.resident_fraction(files) == 0.0


def test_of_a_big_file_some_pages_are_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr(page_cache, "_SAMPLES", 8)
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * 4096))
    page_cache.drop([path])
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more than is asked for
        file.read(32 * 4096)
        assert page_cache.resident_fraction([path]) == 0.5


def test_dirty_pages_are_dropped_too(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * 4096))
    assert page_cache.try_drop([path])[0]


def test_a_hint_that_cannot_be_checked_is_called_one(files, monkeypatch):
    # A file of another user.
    monkeypatch.setattr(page_cache, "residency_is_known", lambda path: False)
    assert page_cache.resident_fraction(files) is None
    works, how = page_cache.try_drop(files)
    assert works
    assert "only a hint" in how


def test_where_it_does_not_work_the_reason_is_reported(files, monkeypatch):
    monkeypatch.setattr(page_cache, "drop", lambda files: None)
    reason = "posix_fadvise(DONTNEED): 100% of the bytes stayed in the page cache"
    assert page_cache.try_drop(files) == (False, reason)


def test_a_file_that_is_not_there_is_a_reason(tmp_path):
    reason = "posix_fadvise(DONTNEED): No such file or directory"
    assert page_cache.try_drop([tmp_path / "gone"]) == (False, reason)
