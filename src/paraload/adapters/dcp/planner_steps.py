"""Other code for some methods of a planner, during one load."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.planner import LoadPlanner


@contextmanager
def steps_replaced(planner: LoadPlanner, steps: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """In the block, calls of these methods of ``planner`` run ``steps`` instead.

    They are replaced on the instance: the reader and the planner's other methods must see the
    planner that the user passed, not a wrapper.
    """
    attributes = vars(planner)
    own = {name: attributes[name] for name in steps if name in attributes}
    attributes.update(steps)
    try:
        yield
    finally:
        for name in steps:
            del attributes[name]
        attributes.update(own)
