"""The items of a load, by their numbers in the plan."""

from __future__ import annotations

import pytest

from paraload.core.tasks import RecordSpec, Wanted
from paraload.destinations.targets import Targets
from paraload.engine.items import Items


def spec(item):
    return RecordSpec(item, "a", 10 * item, 10 * item + 10, f"w{item}", Wanted("bytes", (), ()))


@pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 2, 5), (0, 2), (3,), (0, 1, 3, 4)])
def test_items_are_found_by_number_whether_all_of_the_plan_are_there_or_not(numbers):
    items = Items([spec(number) for number in numbers], Targets(), {numbers[-1]})
    for number in numbers:
        assert items.spec(number).fqn == f"w{number}"
        assert items[number].spec.item == number
        assert items[number].ordered == (number == numbers[-1])
