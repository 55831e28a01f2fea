"""Which setting ``paraload bench`` recommends, as a table of measurements."""

from __future__ import annotations

import pytest

from paraload.cli.bench.advice import Setting, advise


def times(*seconds):
    return seconds


def advice(settings, stock=None):
    """From ``{(executor, workers): warm seconds or {state: seconds}}``."""

    def timings(value):
        states = value if isinstance(value, dict) else {"warm": value}
        return {state: times(s, s, s) for state, s in states.items()}

    measured = {Setting(*name): timings(value) for name, value in settings.items()}
    return advise(measured, {} if stock is None else timings(stock))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({("threads", 2): 1.0, ("threads", 4): 0.5}, ("threads", 4), id="the fastest"),
        pytest.param(
            {("threads", 2): 1.04, ("threads", 4): 1.0, ("threads", 8): 1.02},
            ("threads", 2),
            id="fewest workers within 5 %",
        ),
        pytest.param({("threads", 2): 1.2, ("threads", 4): 1.0}, ("threads", 4), id="no noise"),
        pytest.param(
            {("processes", 2): 1.0, ("threads", 2): 1.03}, ("threads", 2), id="threads, if as fast"
        ),
        pytest.param(
            {("pool", 2): 1.0, ("processes", 2): 1.0}, ("processes", 2), id="not the pool"
        ),
        pytest.param(
            {("threads", 2): 1.0, ("auto", 2): 1.04}, ("auto", 2), id="nothing set, if as fast"
        ),
        pytest.param(
            {("auto", 4): 1.0, ("threads", 2): 1.04}, ("threads", 2), id="fewer than by itself"
        ),
        pytest.param(
            {("auto", 4): 1.04, ("auto", 2, True): 1.0},
            ("auto", 4),
            id="the page cache, if as fast",
        ),
        pytest.param(
            {("auto", 4): 1.2, ("auto", 4, True): 1.0}, ("auto", 4, True), id="past the page cache"
        ),
        pytest.param(
            {("threads", 2): 1.03, ("sequential", 1): 1.0}, ("sequential", 1), id="one is enough"
        ),
        pytest.param(
            {
                ("threads", 2): {"warm": 1.0, "cold": 9.0},
                ("threads", 8): {"warm": 1.2, "cold": 3.0},
            },
            ("threads", 8),
            id="good in both states rather than best in one",
        ),
        pytest.param(
            {("threads", 2): {"warm": 1.0}, ("threads", 8): {"warm": 2.0, "cold": 3.0}},
            ("threads", 8),
            id="measured in every state",
        ),
    ],
)
def test_the_simplest_of_the_fastest_is_recommended(settings, expected):
    assert advice(settings).setting == Setting(*expected)


def test_noisy_runs_make_a_greater_difference_count_as_noise():
    quiet = {Setting("threads", 2): {"cold": times(1.09, 1.09)}}
    noisy = {Setting("threads", 8): {"cold": times(0.9, 1.0, 1.0, 1.1, 1.1)}}
    steady = {Setting("threads", 8): {"cold": times(1.0, 1.0, 1.0)}}
    assert advise(quiet | noisy, {}).setting.workers == 2
    assert advise(quiet | steady, {}).setting.workers == 8


@pytest.mark.parametrize(
    ("stock", "speedups", "is_faster"),
    [
        (2.0, {"warm": 2.0}, False),
        (1.0, {"warm": 1.0}, False),
        (0.96, {"warm": 0.96}, False),
        (0.5, {"warm": 0.5}, True),
        (None, {}, False),
    ],
)
def test_torch_is_named_where_it_is_faster(stock, speedups, is_faster):
    found = advice({("threads", 2): 1.0}, stock=stock)
    assert (found.speedups, found.torch_is_faster) == (speedups, is_faster)


def test_without_measurements_there_is_no_advice():
    assert advice({}) is None
    assert advice({}, stock=1.0) is None
    assert advice({("threads", 2): {}}, stock=1.0) is None
