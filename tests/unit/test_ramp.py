"""The number of readers for a table of storages, each a rate per reader for n readers."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from paraload.executors.ramp import Ramp, RampLimits, Sample

MIB = 1 << 20
WORKING = {"cache": 0.9, "storage": 0.05}


def looks(stream_rate, *, start=2, limit=32, cores=2, working=WORKING["storage"], looks=200):
    """Readers in each look: all of them read 4 MiB side by side, at ``stream_rate(n)`` bytes/s."""
    ramp = Ramp(RampLimits(start=start, limit=limit, cores=cores))
    now_s, history = 0.0, []
    ramp.changed(now_s)
    for _ in range(looks):
        readers = ramp.workers
        history.append(readers)
        began_s, now_s = now_s, now_s + 4 * MIB / stream_rate(readers)
        share = min(1.0, cores / readers)
        for _ in range(readers):
            sample = Sample(
                nbytes=4 * MIB,
                started_s=began_s,
                ended_s=now_s,
                working_s=working * share * (now_s - began_s),
            )
            if ramp.note(sample) != readers:
                ramp.changed(now_s)
                break
    return history


def most(history):
    return Counter(history).most_common(1)[0][0]


def test_streams_with_a_rate_of_their_own_get_as_many_readers_as_are_allowed():
    history = looks(lambda _: 50 * MIB)
    assert sorted(set(history)) == [2, 4, 8, 16, 32]
    assert history == sorted(history)
    assert history[:12].count(32) >= 1, "and soon"


@pytest.mark.parametrize(("start", "limit", "steps"), [(3, 10, [3, 6, 10]), (1, 2, [1, 2])])
def test_the_limit_is_reached_and_not_passed(start, limit, steps):
    assert sorted(set(looks(lambda _: 50 * MIB, start=start, limit=limit))) == steps


@pytest.mark.parametrize("cores", [1, 2, 16, 64])
def test_the_page_cache_keeps_the_readers_that_it_starts_with(cores):
    start = min(16, max(2, cores))
    working = WORKING["cache"]
    history = looks(lambda _: 8192 * MIB, start=start, cores=cores, working=working)
    assert set(history) == {start}


@pytest.mark.parametrize("cores", [2, 4])
def test_decoders_that_use_all_cores_get_no_more_readers(cores):
    """A slow storage, and zstd behind it: 8 readers keep the cores at work."""

    def working_part(readers):
        return min(1.0, 0.1 * readers)

    ramp = Ramp(RampLimits(start=2, limit=32, cores=cores))
    now_s = 0.0
    for _ in range(100):
        readers = ramp.workers
        share = working_part(readers) * min(1.0, cores / readers)
        for _ in range(readers):
            sample = Sample(nbytes=MIB, started_s=now_s, ended_s=now_s + 1, working_s=share)
            if ramp.note(sample) != readers:
                break
        now_s += 1
        ramp.changed(now_s)
    assert ramp.workers == 8


def test_a_storage_that_is_limited_as_a_whole_keeps_what_fills_it():
    history = looks(lambda n: min(50, 300 / n) * MIB)
    assert most(history) == 8
    assert max(history) == 16, "which was tried, and brought nothing"
    assert history.count(16) < 8


@pytest.mark.parametrize("start", [1, 2])
def test_a_storage_that_more_readers_slow_down_goes_back(start):
    history = looks(lambda n: 150 / n / (1 + 0.2 * (n - 1)) * MIB, start=start)
    assert set(history) == {start, 2 * start}
    assert history.count(2 * start) < 8


def test_attempts_become_rarer():
    history = looks(lambda n: 150 / n * MIB)
    attempts = [at for at, readers in enumerate(history) if readers == 4]
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert len(gaps) >= 3
    assert all(later >= 1.8 * earlier for earlier, later in pairwise(gaps))


def test_one_unlucky_look_is_made_good():
    """The first attempt meets a hiccup; the storage has room for all."""
    met = []

    def stream_rate(readers):
        if readers == 4 and not met:
            met.append(readers)
            return 1 * MIB
        return 50 * MIB

    history = looks(stream_rate)
    assert most(history) == 32


def test_a_disk_that_is_full_with_two_and_unsteady_is_left_to_few():
    """Some looks get more than twice what others get; 60 looks are a load of a second."""
    few = total = 0
    for seed in range(100):
        chance = random.Random(seed)
        history = looks(lambda n, c=chance: 300 / n * c.uniform(0.6, 1.4) * MIB, looks=60)
        few += sum(readers <= 4 for readers in history)
        total += len(history)
    assert few > 0.8 * total


def test_what_began_among_other_readers_does_not_count():
    ramp = Ramp(RampLimits(start=2, limit=32, cores=2))
    ramp.changed(0.0)
    slow = {"nbytes": MIB, "working_s": 0.0}
    assert ramp.note(Sample(started_s=0.0, ended_s=1.0, **slow)) == 2
    assert ramp.note(Sample(started_s=0.0, ended_s=1.0, **slow)) == 4
    for _ in range(9):  # there are not yet four of them
        assert ramp.note(Sample(started_s=1.0, ended_s=2.0, **slow)) == 4
    ramp.changed(2.0)
    for _ in range(9):  # these began when there were two
        assert ramp.note(Sample(started_s=1.9, ended_s=9.0, **slow)) == 4
    assert ramp.note(Sample(started_s=2.0, ended_s=3.0, **slow)) == 4
    assert ramp.note(Sample(started_s=2.0, ended_s=3.0, **slow)) == 8
