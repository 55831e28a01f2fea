"""Rows about targets and planners: conversions, odd memory, exceptions of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from tests.faults.case import Case, fails, loads, raises

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.scene import Scene

__all__ = ["CASES"]

GROUP = "stored against target"


class PlannerError(Exception):
    """With arguments that the default pickling of exceptions loses."""

    def __init__(self, step: str, *, number: int) -> None:
        super().__init__(f"{step} at {number}")
        self.step, self.number = step, number


class Raising(DefaultLoadPlanner):
    """Raises at the third call of one of its steps."""

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__()
        self.step, self.error, self.count = step, error, 0

    def _come_to(self, step: str) -> None:
        self.count += step == self.step
        if self.count == (1 if step == "load_bytes" else 3) and step == self.step:
            raise self.error

    def resolve_tensor(self, read_item: Any) -> Any:
        self._come_to("resolve_tensor")
        return super().resolve_tensor(read_item)

    def commit_tensor(self, read_item: Any, tensor: Any) -> None:
        self._come_to("commit_tensor")
        super().commit_tensor(read_item, tensor)

    def load_bytes(self, read_item: Any, value: Any) -> None:
        self._come_to("load_bytes")
        super().load_bytes(read_item, value)


def raising(step: str, make: Callable[[str], BaseException]) -> Any:
    def arrange(scene: Scene) -> None:
        scene.planner = Raising(step, make(step))
        scene.words.append(step)

    return arrange


def target(fqn: str, make: Callable[[torch.Tensor], torch.Tensor], *, strict: bool = False) -> Any:
    """Load ``fqn`` into ``make(plain target)``; expect torch's own conversion."""

    def arrange(scene: Scene) -> None:
        made = scene.targets[fqn] = make(scene.targets[fqn])
        if not made.is_complex() and scene.expected[fqn].is_complex():
            scene.words += ["complex"]
        else:
            scene.expected[fqn] = scene.expected[fqn].to(made.dtype)
        if strict:
            scene.options["strict"] = True
        scene.words.append(repr(fqn))

    return arrange


def strided(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    view = wide[..., ::2]
    view.copy_(tensor)
    return view


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous().t()


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].clone().expand(tensor.shape)


def shared(scene: Scene) -> None:
    """Two targets share memory and have different values: the last one wins, as with torch."""
    scene.targets["big.1"] = scene.targets["big.0"]
    scene.expected["big.0"] = scene.expected["big.1"]
    scene.words += ["shares memory", "big.0", "big.1"]


def partly_shared(scene: Scene) -> None:
    memory = torch.zeros(450, 700)
    scene.targets["big.0"], scene.targets["big.1"] = memory[:300], memory[150:]
    first, last = scene.expected["big.0"], scene.expected["big.1"]
    scene.expected["big.0"] = torch.cat([first[:150], last[:150]])
    scene.words += ["shares memory", "big.0", "big.1"]


def strictly(arrange: Any) -> Any:
    def arrange_strict(scene: Scene) -> None:
        arrange(scene)
        scene.options["strict"] = True

    return arrange_strict


def _rows() -> list[tuple[str, Any, Any]]:
    real = fails("DtypeMismatchError")
    cast = loads("conversions")
    rows: list[tuple[str, Any, Any]] = [
        ("complex into float", target("complex", lambda t: t.real.clone()), real),
        ("complex into integer", target("complex", lambda t: t.real.long()), real),
        ("float into complex", target("float16", lambda t: t.to(torch.complex64)), cast),
    ]
    for fqn, dtype in (
        ("big.0", torch.bfloat16),
        ("big.0", torch.float64),
        ("small.0", torch.float32),
        ("float8", torch.float32),
        ("uint8", torch.int64),
        ("big.uint8", torch.float32),
        ("bool", torch.uint8),
    ):

        def convert(tensor: torch.Tensor, dtype: torch.dtype = dtype) -> torch.Tensor:
            return tensor.to(dtype)

        name = f"{fqn} into {str(dtype).removeprefix('torch.')}"
        rows += [
            (name, target(fqn, convert), cast),
            (f"{name}, strict", target(fqn, convert, strict=True), fails("DtypeMismatchError")),
        ]
    for fqn in ("big.0", "small.0"):
        rows += [
            (f"target of {fqn} strided", target(fqn, strided), loads()),
            (f"target of {fqn} transposed", target(fqn, transposed), loads()),
            (f"target of {fqn} expanded", target(fqn, expanded), fails("CheckpointReadError")),
        ]
    rows += [
        ("two targets are one memory", shared, loads("overwritten")),
        ("two targets are one memory, strict", strictly(shared), fails("AliasedTargetError")),
        ("two targets overlap", partly_shared, loads("overwritten")),
        ("two targets overlap, strict", strictly(partly_shared), fails("AliasedTargetError")),
    ]
    for step in ("resolve_tensor", "commit_tensor", "load_bytes"):
        rows += [
            (
                f"planner raises in {step}",
                raising(step, lambda step: PlannerError(step, number=3)),
                raises("PlannerError"),
            ),
            (
                f"planner raises StopIteration in {step}",
                raising(step, StopIteration),
                raises("StopIteration"),
            ),
        ]
    return rows


CASES = [
    Case(group=GROUP, name=name, arrange=arrange, expect=expect, every=name.startswith("planner"))
    for name, arrange, expect in _rows()
]
