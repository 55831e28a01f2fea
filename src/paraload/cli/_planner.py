"""A planner for commands, which must not run code from a checkpoint."""

import io
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.errors import FormatError, ItemReadError
from paraload.formats.torch_load import load_tensor
from paraload.metadata.index import CheckpointIndex, Entry

#: ``copy_`` needs a target with the same scales, which only the record has, not the metadata. So
#: targets cannot be made before the record is read.
QUANTISED: Final = frozenset(
    {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
)


def empty_state(index: CheckpointIndex) -> dict[str, Any]:
    """A target for every entry of the checkpoint; ``None`` for objects.

    The stand-in for a quantised tensor has its shape but only one byte, which is never written to.

    Raises:
        ItemReadError: torch cannot make a tensor that the metadata describes.
    """
    return {entry.name: _empty(entry) for entry in index.entries}


def _empty(entry: Entry) -> torch.Tensor | None:
    if entry.dtype is None or entry.shape is None:
        return None
    dtype = getattr(torch, entry.dtype)
    try:
        if dtype in QUANTISED:
            return torch.zeros((), dtype=torch.uint8, device="cpu").expand(entry.shape)
        return torch.empty(entry.shape, dtype=dtype, device="cpu")
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ItemReadError(
            "torch cannot create the tensor that the metadata describes",
            fqn=entry.name,
            expected=f"a known dtype and enough memory for a tensor of shape {entry.shape}"
            f" and dtype {dtype}",
            got=str(error).split("\n", 1)[0],
            hint="The metadata is damaged, or a newer torch wrote it",
        ) from error


class BytesPlanner(QuickLoadPlanner):
    """Leaves objects as bytes, and loads quantised tensors from their bytes.

    Unpickling objects would need the classes of the program that saved them, and would run any code
    in the checkpoint.
    """

    def create_local_plan(self) -> LoadPlan:
        """The plan of torch, with quantised tensors as whole records."""
        plan = super().create_local_plan()
        quantised = {fqn: it for fqn in self.state_dict if (it := self._quantised(fqn))}
        plan.items = [item for item in plan.items if item.dest_index.fqn not in quantised]
        for fqn, entry in quantised.items():
            plan.items += _record_items(fqn, entry)
        return plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Drop objects; check that torch can read quantised tensors."""
        index = read_item.storage_index
        if (entry := self._quantised(index.fqn)) is None:
            return
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

    def _quantised(self, fqn: str) -> TensorStorageMetadata | None:
        entry = self.metadata.state_dict_metadata.get(fqn) if self.metadata else None
        if isinstance(entry, TensorStorageMetadata) and entry.properties.dtype in QUANTISED:
            return entry
        return None


def _record_items(fqn: str, entry: TensorStorageMetadata) -> Iterator[ReadItem]:
    nothing = torch.Size((0,))
    for number, chunk in enumerate(entry.chunks):
        if 0 not in chunk.sizes:
            index = MetadataIndex(fqn, chunk.offsets, number)
            yield ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)


def planned(
    reader: Any, state: dict[str, Any], metadata: Metadata
) -> tuple[LoadPlan, BytesPlanner]:
    """The plan that ``dcp.load`` would make in one process, and its planner."""
    planner = BytesPlanner()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
    return planner.finish_plan(plan), planner
