"""A planner for commands, which read checkpoints of strangers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paraload._quick_planner import QuickLoadPlanner

if TYPE_CHECKING:
    import io

    from torch.distributed.checkpoint.planner import ReadItem

__all__ = ["BytesPlanner"]


class BytesPlanner(QuickLoadPlanner):
    """Leaves objects as bytes.

    Unpickling them would need the classes of the job that saved them, and run whatever code a
    stranger's checkpoint holds.
    """

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Drop them."""
