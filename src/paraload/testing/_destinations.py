"""The contract of destinations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paraload.destinations.base import Destination
from paraload.errors import DtypeMismatchError, ShapeMismatchError, TargetMemoryError
from paraload.testing._sources import expect

if TYPE_CHECKING:
    import torch


class DestinationContract:
    """What every :class:`~paraload.destinations.base.Destination` does.

    Fixtures: ``destination``, which may convert; and ``device``, where its targets are.
    """

    def _source(self, destination: Destination, tensor: torch.Tensor) -> tuple[Any, torch.Tensor]:
        import torch  # noqa: PLC0415 - torch only for those who test destinations

        staging = destination.staging(tensor.numel() * tensor.itemsize)
        staging.memory[:] = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        flat = torch.frombuffer(staging.memory, dtype=torch.uint8).view(tensor.dtype)
        return staging, flat.view(tensor.shape)

    def test_staging_memory_has_its_size_and_can_be_written(self, destination: Destination) -> None:
        """Of no bytes, too."""
        for nbytes in (0, 1, 4096, 1_000_003):
            staging = destination.staging(nbytes)
            assert len(staging.memory) == nbytes
            staging.memory[:] = bytes(nbytes)

    def test_a_target_has_its_values_when_the_copy_is_done(
        self, destination: Destination, device: str
    ) -> None:
        """Whole tensors, parts, other layouts, other dtypes."""
        import torch  # noqa: PLC0415 - likewise

        stored = torch.arange(24.0).view(4, 6)
        for target in (
            torch.zeros(4, 6, device=device),
            torch.zeros(6, 4, device=device).t(),
            torch.zeros(8, 12, device=device)[::2, 3:9],
            torch.zeros(4, 6, device=device, dtype=torch.float64),
        ):
            staging, source = self._source(destination, stored)
            copy = destination.copy_into(target, source, item=7)
            if copy is not None:
                assert copy.wait(60)
                assert copy.wait(0)
            del staging
            assert torch.equal(target.cpu().to(stored.dtype), stored)
        assert destination.conversions() == {"float32 to float64": 1}

    def test_many_copies_may_be_under_way(self, destination: Destination, device: str) -> None:
        """And are waited for in any order."""
        import torch  # noqa: PLC0415 - likewise

        targets = [torch.zeros(1000, device=device) for _ in range(20)]
        copies, held = [], []
        for number, target in enumerate(targets):
            staging, source = self._source(destination, torch.full((1000,), float(number)))
            held.append(staging)
            copies.append(destination.copy_into(target, source, item=number))
        for copy in reversed(copies):
            if copy is not None:
                assert copy.wait(None)
        assert [target.unique().tolist() for target in targets] == [[float(n)] for n in range(20)]

    def test_targets_that_do_not_fit_are_refused(
        self, destination: Destination, device: str
    ) -> None:
        """Before anything is written."""
        import torch  # noqa: PLC0415 - likewise

        freed = torch.zeros(3, device=device)
        freed.untyped_storage().resize_(0)
        for error, target, stored in (
            (ShapeMismatchError, torch.zeros(4, device=device), torch.ones(3)),
            (ShapeMismatchError, torch.zeros(3, 3, device=device), torch.ones(3)),
            (TargetMemoryError, freed, torch.ones(3)),
            (DtypeMismatchError, torch.zeros(3, device=device), torch.ones(3) * 1j),
        ):
            staging, source = self._source(destination, stored)
            expect(error, lambda t=target, s=source: destination.copy_into(t, s, item=0))
            assert target is freed or not target.any()
            del staging
