"""What ``python -m benchmarks --only remote`` measures with: the proxy, requests, tables."""

from __future__ import annotations

import time
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from benchmarks import remote
from benchmarks.latency import delayed
from benchmarks.remote import RAW
from benchmarks.rounds import Timing
from tests.servers import faulty_server


def test_the_proxy_delays_and_counts_each_request():
    with faulty_server({"folder/file": b"x" * 3_000_000}) as server:
        with delayed(server.url, latency_s=0.2) as (url, count):
            assert count() == 0
            for number in (1, 2):
                started = time.monotonic()
                with urlopen(f"{url}/folder/file") as answer:
                    assert answer.read() == b"x" * 3_000_000
                assert time.monotonic() - started >= 0.2
                assert count() == number
        assert len(server.requests) == 2


def test_the_fewest_requests_are_one_for_the_size_and_the_longest_ranges(tmp_path):
    longest = remote.ObjectStoreSource.limits.max_request_bytes
    for name, size in {".metadata": 1, "a": longest, "b": 3 * longest + 1}.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    assert remote._fewest_requests(SimpleNamespace(folder=tmp_path)) == 3 + 1 + 1 + 4


@pytest.fixture
def timings():
    seconds = {remote._TORCH: 9.0, RAW: 1.0, remote._OURS: 1.25, remote._DEFAULT: 0.5}
    return {name: Timing(seconds=(value,)) for name, value in seconds.items()}


def test_a_row_compares_both_settings_with_torch_and_the_download(timings):
    row = remote._row(4, timings)
    expected = ("4", "9.00", "1.00", "1.25", "7.2", "0.80", "1.250..1.250", "0.50", "18.0")
    assert row == expected
    assert len(row) == len(remote._COLUMNS)
    assert [bar.passed for bar in remote._bars("rated", 4, timings)] == [True, False]


def test_requests_are_held_against_the_fewest(timings):
    requests = dict.fromkeys(timings, 100) | {remote._DEFAULT: 111}
    table = remote._latency_table(timings, requests, 100, 10_000)
    assert table.rows[-1] == (
        *("paraload", "0.500", "18.0", "2.00", "111", "1.11", "0.500..0.500"),
    )
    by_torch, by_requests = remote._latency_bars(timings, requests, 100)
    assert by_torch.passed
    assert not by_requests.passed
