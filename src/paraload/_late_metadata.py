"""A metadata that is made when somebody looks at it.

What :mod:`paraload.metadata` keeps of a file must be out of reach of its callers: Megatron, for
one, sets ``size`` of the entries while it plans. So each caller gets objects of his own. They are
made of the kept columns in a quarter of the time that unpickling takes, on the first look:

    LateMetadata --any attribute, or any other use--> a Metadata: the same object, now of that class

Rejected: one object for all callers (a change reaches the next load); one that is compared with the
columns before it is handed out again (looks at as many objects, and two callers still share them);
a second one made ahead (35 MB and 50 ms for every program that loads once).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from paraload._gc import collector_paused

if TYPE_CHECKING:
    from paraload._columns import Columns

__all__ = ["LateMetadata", "made", "stamp"]

#: Two threads may look at the same time, and a signal handler in the middle of it.
_making: Final = threading.RLock()


class LateMetadata(Metadata):
    """A :class:`Metadata` whose attributes are yet to come.

    Args:
        columns: what they are made of.
        load_id: for its ``storage_meta``.
    """

    def __init__(self, columns: Columns, load_id: str | None) -> None:
        object.__getattribute__(self, "__dict__").update(columns=columns, load_id=load_id)

    def __getattribute__(self, name: str) -> Any:
        return getattr(made(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(made(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(made(self), name)


def made(metadata: LateMetadata) -> Metadata:
    """The same object, with its attributes."""
    with _making:
        if type(metadata) is LateMetadata:
            attributes = object.__getattribute__(metadata, "__dict__")
            with collector_paused():
                fresh = attributes["columns"].attributes()
            load_id = attributes["load_id"]
            attributes.clear()
            attributes.update(fresh)
            object.__setattr__(metadata, "__class__", Metadata)
            stamp(metadata, load_id)
    return metadata


def stamp(metadata: Any, load_id: str | None) -> None:
    """Write down which load this is, as torch's reader does."""
    if load_id is None:
        return
    if getattr(metadata, "storage_meta", None) is None:
        metadata.storage_meta = StorageMeta()
    metadata.storage_meta.load_id = load_id
