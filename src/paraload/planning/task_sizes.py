"""Sizes of read tasks: large while much is left to read, small towards the end."""

from collections.abc import Callable

from paraload.core.tasks import RecordSpec
from paraload.planning.read_tasks import split_bytes_for


class TaskSizes:
    """Chooses how many bytes of a record one task reads.

    Large tasks cost least; small ones at the end let all readers finish at about the same time.

    Attributes:
        split_bytes: the size for the last record that was asked for.

    Args:
        total_bytes: of all records.
        limit_bytes: the most for one task.
        least_bytes: the least for one task.
        workers: returns the current number of readers.
    """

    def __init__(
        self, total_bytes: int, limit_bytes: int, least_bytes: int, workers: Callable[[], int]
    ) -> None:
        self._left_bytes = total_bytes
        self._limits = limit_bytes, least_bytes
        self._workers = workers
        self._record: tuple[str, int] | None = None
        self.split_bytes = 0

    def next_split_bytes(self, spec: RecordSpec) -> int:
        """The size for the record of ``spec``: one for all items of a record, which share reads."""
        record = spec.path, spec.start
        if record != self._record:
            self._record = record
            self.split_bytes = split_bytes_for(self._left_bytes, self._workers(), *self._limits)
            self._left_bytes -= spec.length
        return self.split_bytes
