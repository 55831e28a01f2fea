"""SafeLoadPlanner: objects in a checkpoint that bring no code.

A checkpoint holds tensors, and objects that torch's planner unpickles: whoever wrote the file can
have any code run that way. Here they go through torch's restricted unpickler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint._nested_dict import set_element

from paraload._quick_planner import QuickLoadPlanner
from paraload.errors import UnsafeObjectError

if TYPE_CHECKING:
    import io

    from torch.distributed.checkpoint.planner import ReadItem

__all__ = ["SafeLoadPlanner"]


class SafeLoadPlanner(QuickLoadPlanner):
    """torch's ``DefaultLoadPlanner``, but objects are read with ``weights_only=True``.

    Numbers, strings, containers and tensors load. Other classes are refused, unless they were
    allowed with ``torch.serialization.add_safe_globals``.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"step": [1, 2]}, checkpoint_id=folder, no_dist=True)
    ...     state = {"step": None}
    ...     _ = paraload.load(state, folder, planner=paraload.SafeLoadPlanner(), no_dist=True)
    >>> state
    {'step': [1, 2]}
    """

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take the object of ``read_item``.

        Raises:
            UnsafeObjectError: it names a class or function that is not allowed; nothing was run.
        """
        try:
            loaded = torch.load(value, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes can raise anything
            raise UnsafeObjectError(
                f"the object was not unpickled ({_first_line(error)})",
                fqn=read_item.dest_index.fqn,
                hint="If you trust whoever wrote it: torch.serialization.add_safe_globals([...]),"
                " or torch's DefaultLoadPlanner, which runs whatever it contains",
            ) from error
        fqn = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], loaded)
        else:
            self.state_dict[fqn] = loaded


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
