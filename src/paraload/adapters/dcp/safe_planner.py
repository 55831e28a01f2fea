"""SafeLoadPlanner: loads the objects of a checkpoint without running code from it.

Besides tensors, a checkpoint holds pickled objects. torch's planner unpickles them, which runs
whatever code the file names. This planner uses torch's restricted unpickler.
"""

import io

import torch
from torch.distributed.checkpoint.planner import ReadItem

from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.core.compat import set_element
from paraload.errors import UnsafeObjectError
from paraload.formats.torch_load import reason_of, refusal


class SafeLoadPlanner(QuickLoadPlanner):
    """torch's ``DefaultLoadPlanner``, except that it unpickles objects with ``weights_only=True``.

    Numbers, strings, containers and tensors load. Other classes are refused unless
    ``torch.serialization.add_safe_globals`` allows them. Arguments are those of
    ``DefaultLoadPlanner``.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"step": [1, 2]}, checkpoint_id=folder, no_dist=True)
    ...     state = {"step": None}
    ...     _ = paraload.load(state, folder, planner=paraload.SafeLoadPlanner(), no_dist=True)
    >>> state
    {'step': [1, 2]}
    """

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Unpickle the object of ``read_item`` into the state dict.

        Raises:
            UnsafeObjectError: it names a class or function that is not allowed, or is damaged. None
                of its code was run.
        """
        fqn = read_item.dest_index.fqn
        try:
            loaded = torch.load(value, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - damaged bytes can raise anything
            refused = refusal(error, "object") or UnsafeObjectError(
                f"the object was not unpickled ({reason_of(error)})",
                hint="It is damaged, or contains something that weights_only=True cannot load",
            )
            refused.fqn = fqn
            raise refused from None
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], loaded)
        else:
            self.state_dict[fqn] = loaded
