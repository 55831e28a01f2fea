"""The garbage collector is paused while long-lived objects are made, and restored afterwards."""

from __future__ import annotations

import gc

import pytest

from paraload.runtime.gc_pause import collector_paused, collector_resumed, objects_frozen


@pytest.fixture(autouse=True)
def _collector():
    assert gc.isenabled()
    yield
    gc.enable()
    gc.unfreeze()


def test_it_rests_and_goes_on():
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
        with collector_resumed():
            assert gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_stays_off_where_it_was():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize("context", [collector_paused, collector_resumed, objects_frozen])
def test_errors_leave_it_as_it_was(context):
    with pytest.raises(KeyError), context():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("resume", [True, False])
def test_what_was_made_meanwhile_is_not_walked_right_afterwards(resume):
    seen = []
    gc.callbacks.append(lambda phase, info: seen.append((phase, info["generation"])))
    try:
        with collector_paused():
            made = [[number] for number in range(50_000)]
            if resume:
                with collector_resumed():
                    more = [[] for _ in range(10)]
        if not resume:
            more = [[] for _ in range(10)]
    finally:
        gc.callbacks.pop()
    assert len(made) + len(more) == 50_010
    assert seen == []
    assert gc.get_freeze_count() == 0
    assert any(one is made for one in gc.get_objects(generation=2))


def test_what_is_frozen_is_thawed():
    before = gc.get_freeze_count()
    with objects_frozen():
        assert gc.get_freeze_count() > 1000
        with objects_frozen(), collector_paused():
            pass
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == before == 0


def test_what_the_program_has_frozen_stays_so():
    gc.freeze()
    count = gc.get_freeze_count()
    with collector_paused(), objects_frozen():
        pass
    assert gc.get_freeze_count() == count > 1000
