"""A planner for commands, which read checkpoints of strangers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload._quick_planner import QuickLoadPlanner
from paraload.errors import FormatError, ItemReadError
from paraload.formats._torch_load import load_tensor

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    from torch.distributed.checkpoint import Metadata

__all__ = ["QUANTISED", "BytesPlanner", "empty_state"]

#: Their scales are in the record, not in the metadata, and ``copy_`` needs a target with the same
#: scheme. So no target can be made before the record is read.
QUANTISED: Final = frozenset(
    {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
)


def empty_state(metadata: Metadata) -> dict[str, Any]:
    """A target for every entry of the checkpoint; ``None`` for objects.

    The stand-in for a quantised tensor has its size, but only one byte, which is never written to.

    Raises:
        ItemReadError: torch cannot make a tensor that the metadata describes.
    """
    return {name: _empty(name, item) for name, item in metadata.state_dict_metadata.items()}


def _empty(name: str, item: Any) -> torch.Tensor | None:
    if not isinstance(item, TensorStorageMetadata):
        return None
    try:
        if item.properties.dtype in QUANTISED:
            return torch.zeros((), dtype=torch.uint8, device="cpu").expand(item.size)
        return torch.empty(item.size, dtype=item.properties.dtype, device="cpu")
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ItemReadError(
            "torch cannot create the tensor that the metadata describes",
            fqn=name,
            expected=f"a known dtype and enough memory for a tensor of shape {tuple(item.size)}"
            f" and dtype {item.properties.dtype}",
            got=str(error).split("\n", 1)[0],
            hint="The metadata is damaged, or a newer torch wrote it",
        ) from error


class BytesPlanner(QuickLoadPlanner):
    """Leaves objects as bytes, and loads quantised tensors from their bytes.

    Unpickling objects would need the classes of the job that saved them, and run whatever code a
    stranger's checkpoint holds.
    """

    def create_local_plan(self) -> LoadPlan:
        """The plan of torch, with quantised tensors as whole records."""
        plan, entries = super().create_local_plan(), self._entries()
        plan.items = [it for it in plan.items if not _is_quantised(entries, it.dest_index.fqn)]
        for fqn in self.state_dict:
            if _is_quantised(entries, fqn):
                plan.items += _record_items(fqn, entries[fqn])
        return plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Drop objects; check that torch can read quantised tensors.

        Raises:
            ItemReadError: torch cannot read it.
        """
        index = read_item.storage_index
        entries = self._entries()
        if not _is_quantised(entries, index.fqn):
            return
        entry = entries[index.fqn]
        tensor = load_tensor(value.getbuffer())
        shape = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
        expected, got = (entry.properties.dtype, tuple(shape)), (tensor.dtype, tuple(tensor.shape))
        if expected != got:
            raise FormatError(
                "the stored tensor is not the one that the metadata describes",
                expected="{} of shape {}".format(*expected),
                got="{} of shape {}".format(*got),
                hint="File and metadata do not belong together",
            )

    def _entries(self) -> dict[str, Any]:
        return {} if self.metadata is None else self.metadata.state_dict_metadata


def _is_quantised(entries: dict[str, Any], fqn: str) -> bool:
    entry = entries.get(fqn)
    return isinstance(entry, TensorStorageMetadata) and entry.properties.dtype in QUANTISED


def _record_items(fqn: str, entry: TensorStorageMetadata) -> Iterator[ReadItem]:
    nothing = torch.Size((0,))
    for number, chunk in enumerate(entry.chunks):
        if 0 not in chunk.sizes:
            index = MetadataIndex(fqn, chunk.offsets, number)
            yield ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)
