"""The pickle inside of a record: no part of it can change anything that outlives it."""

import io
import pickle
import pickletools

import pytest

from paraload.formats import torch_pickle


def builds(module, name, state):
    """A pickle that gives ``state`` to a global, and loads to a number."""
    return b"".join(
        [
            pickle.PROTO + b"\x02",
            pickle.GLOBAL + f"{module}\n{name}\n".encode(),
            pickle.dumps(state, protocol=2)[2:-1],  # without PROTO and STOP
            pickle.BUILD,
            pickle.STOP,
        ]
    )


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"])
@pytest.mark.parametrize("state", [{"kept": 1}, (None, {"__defaults__": (1, 2), "__doc__": "?"})])
def test_a_pickle_cannot_change_the_functions_that_rebuild_tensors(name, state):
    pickled = builds("torch._utils", name, state)
    pickletools.dis(pickled, out=io.StringIO())  # raises if the pickle is malformed
    with pytest.raises(torch_pickle.OddError):
        torch_pickle.tensor_in(pickled)
    for function in vars(torch_pickle).values():
        if callable(function) and getattr(function, "__name__", "").startswith("_rebuild"):
            assert vars(function) == {}
            assert function.__defaults__ is None
            assert function.__doc__ is None
