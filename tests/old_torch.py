"""Lets tests call an older torch as they call a newer one.

Importing this module gives torch's functions the keywords that came later:

    dcp.save(no_dist=), dcp.load(no_dist=)      2.7     ignored: these tests have no process group
    FileSystemWriter(_extensions=)              2.7     ignored if None
    FileSystemWriter(serialization_format=)     2.8
    dcp.save(use_collectives=)                  2.9

A test that needs one of the others is skipped. Its reason names the first torch that has the
feature, and ``docs/torch-versions.md`` counts the skipped tests by reason.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from paraload.core.compat import release

RELEASE = release()

_EXTENSIONS = (2, 7), "stream transforms"
_SAFETENSORS = (2, 8), "safetensors in .distcp files"
_OWN_METADATA = (2, 9), "metadata for each rank"
_HF_READER = (2, 9), "the reader and writer of Hugging Face folders that are compared"


def _reason(since: tuple[int, int], what: str) -> str:
    return f"needs torch {since[0]}.{since[1]}: {what}"


def _needs(since: tuple[int, int], what: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(since > RELEASE, reason=_reason(since, what))


needs_extensions = _needs(*_EXTENSIONS)
needs_safetensors_in_distcp = _needs(*_SAFETENSORS)
needs_own_metadata = _needs(*_OWN_METADATA)
needs_hf_reader = _needs(*_HF_READER)
HAS_EXTENSIONS = _EXTENSIONS[0] <= RELEASE

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch 2.15, where it has another name
    from torch.distributed.checkpoint import _fsspec_filesystem as torch_fsspec  # noqa: F401

HuggingFaceStorageWriter = getattr(dcp, "HuggingFaceStorageWriter", None)
QuantizedHuggingFaceStorageReader = getattr(
    dcp, "QuantizedHuggingFaceStorageReader", type("Missing", (), {})
)


def bytes_as(dtype: str, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The bytes ``values`` as a dtype that this torch may not have, instead of which they stay."""
    return values.clone().view(getattr(torch, dtype, torch.uint8)).reshape(shape)


def skip_without_extensions() -> None:
    """Skip the running test where torch has no stream transforms."""
    if not HAS_EXTENSIONS:
        pytest.skip(_reason(*_EXTENSIONS))


def _without(function: Any, features: dict[str, tuple[tuple[int, int], str] | None]) -> Any:
    """``function`` with keywords that it does not have: dropped, or a reason to skip the test."""
    missing = features.keys() - inspect.signature(function).parameters.keys()
    if not missing:
        return function

    @functools.wraps(function)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        for name in missing & keywords.keys():
            feature = features[name]
            if keywords.pop(name) is not None and feature is not None:
                pytest.skip(_reason(*feature))
        return function(*args, **keywords)

    return wrapped


dcp.save = _without(dcp.save, {"no_dist": None, "use_collectives": _OWN_METADATA})
dcp.load = _without(dcp.load, {"no_dist": None})
dcp.FileSystemWriter.__init__ = _without(
    dcp.FileSystemWriter.__init__,
    {"_extensions": _EXTENSIONS, "serialization_format": _SAFETENSORS},
)
