"""State dicts as bits: fill them with poison, compare them, and sum them up over any sharding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Checksums",
    "add_up",
    "checksums",
    "differences",
    "local",
    "local_bytes",
    "poison",
    "snapshot",
]

#: What a load has to replace; no checkpoint of the demo holds it.
_POISON = "not loaded"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Elements summed up at once: few enough to stay in the processor's cache.
_SPAN = 1 << 16

#: By name: a number for every tensor, text for every object.
Checksums: TypeAlias = dict[str, int | str]


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any, Any]]:
    """Every tensor and object of nested dicts and lists: name, container, key, value."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        here = (*path, str(key))
        holds_more = isinstance(value, list) and any(isinstance(part, dict) for part in value)
        if isinstance(value, dict) or holds_more:
            yield from leaves(value, here)
        else:
            yield ".".join(here), tree, key, value


def local(value: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds."""
    tensor = value.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def bits(value: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as integers, flat, so that NaN equals NaN and 0.0 does not equal -0.0."""
    return local(value).reshape(-1).view(_INTEGERS[value.element_size()])


def local_bytes(state: dict[str, Any]) -> int:
    """Bytes of the tensors that this rank holds."""
    tensors = (value for *_, value in leaves(state) if isinstance(value, torch.Tensor))
    return sum(local(tensor).nbytes for tensor in tensors)


def poison(state: dict[str, Any]) -> None:
    """Overwrite everything, so that nothing can be right by chance or from a load before."""
    for _, container, key, value in list(leaves(state)):
        if isinstance(value, torch.Tensor):
            local(value).fill_(float("nan") if value.is_floating_point() else -1)
        else:
            container[key] = _POISON


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of everything, by name."""
    return {
        name: bits(value).clone() if isinstance(value, torch.Tensor) else value
        for name, _, _, value in leaves(state)
    }


def differences(state: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Names whose value is not, bit for bit, the one in a :func:`snapshot`."""
    seen = {name: value for name, _, _, value in leaves(state)}
    wrong = set(seen) ^ set(reference)
    for name in set(seen) & set(reference):
        value, expected = seen[name], reference[name]
        if isinstance(value, torch.Tensor):
            same = isinstance(expected, torch.Tensor) and torch.equal(bits(value), expected)
        else:
            same = type(value) is type(expected) and bool(value == expected)
        if not same:
            wrong.add(name)
    return sorted(wrong)


def checksums(state: dict[str, Any], *, rank: int) -> Checksums:
    """This rank's part of a checksum of every tensor, which does not depend on the sharding.

    It is the sum of ``bits of the element * (2 * place + 1)`` modulo 2**64, where the place counts
    the elements of the whole tensor. So the sums of all ranks add up to the same number, whether 4
    ranks hold a tensor, 2 or one; an element that is wrong, or in a wrong place, changes it.
    """
    return {
        name: _checksum(value, rank=rank) if isinstance(value, torch.Tensor) else repr(value)
        for name, _, _, value in leaves(state)
    }


def add_up(parts: list[Checksums]) -> Checksums:
    """The checksums of whole tensors from those of every rank's part."""
    whole = parts[0].copy()
    for part in parts[1:]:
        for name, value in part.items():
            before = whole[name]
            if isinstance(value, int) and isinstance(before, int):
                whole[name] = (before + value) % (1 << 64)
    return whole


def _checksum(value: torch.Tensor, *, rank: int) -> int:
    if not isinstance(value, DTensor) and rank > 0:
        return 0  # every rank holds all of it: count it once
    flat, start, total = bits(value), _first_place(value), 0
    factors = 2 * torch.arange(min(_SPAN, flat.numel())) + 1
    buffer = torch.empty_like(factors)
    for begin in range(0, flat.numel(), _SPAN):
        part = flat[begin : begin + _SPAN]
        words = buffer[: part.numel()].copy_(part)
        total += int(torch.dot(words, factors[: words.numel()]))
        total += 2 * (start + begin) * int(words.sum())
    return total % (1 << 64)


def _first_place(value: torch.Tensor) -> int:
    """Where this rank's rows begin in the whole tensor, in elements: FSDP2 shards rows."""
    if not isinstance(value, DTensor):
        return 0
    (chunk,) = value.__create_chunk_list__()  # what DCP itself asks a sharded tensor
    row = value.numel() // value.shape[0]  # an index, value[0], would gather the tensor
    return int(chunk.offsets[0]) * row
