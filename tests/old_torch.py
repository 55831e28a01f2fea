"""Lets tests call an older torch as they call a newer one.

Importing this module gives torch's functions the keywords that came later:

    dcp.save(no_dist=), dcp.load(no_dist=)      2.7     until then, not having a process group is
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
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed.checkpoint as dcp

from paraload.core.compat import HFStorageInfo, release

RELEASE = release()


class Feature(NamedTuple):
    """What a torch has that older ones lack."""

    since: tuple[int, int]
    what: str

    @property
    def is_here(self) -> bool:
        return self.since <= RELEASE

    @property
    def reason(self) -> str:
        return f"needs torch {self.since[0]}.{self.since[1]}: {self.what}"

    @property
    def needed(self) -> pytest.MarkDecorator:
        """A mark for tests that need it."""
        return pytest.mark.skipif(not self.is_here, reason=self.reason)

    def require(self) -> None:
        """Skip the running test without it."""
        if not self.is_here:
            pytest.skip(self.reason)


EXTENSIONS = Feature((2, 7), "stream transforms")
READS_ALL_KEYS = Feature((2, 7), "_load_state_dict_from_keys() that reads all entries")
FSDP2_ON_CPU = Feature((2, 7), "FSDP2 without a GPU")
SAFETENSORS_FORMAT = Feature((2, 8), "safetensors in .distcp files")
FSSPEC_OPTIONS = Feature((2, 7), "options of FsspecReader")
HF_WRITER = Feature((2, 8), "the writer of Hugging Face folders")
FLOAT4_COPIES = Feature((2, 9), "copies of float4")
HF_CLASSES = Feature((2, 8), "classes that newer writers put into .metadata")
OWN_METADATA = Feature((2, 9), "metadata for each rank")
HF_READER = Feature((2, 9), "the reader of Hugging Face folders as it is since")

#: Whether ``dcp.load`` does not say why there is no metadata.
HIDES_METADATA_ERRORS = (2, 9) <= RELEASE < (2, 12)

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


def storage_info_of_hugging_face() -> Any:
    """Without a byte range, which some versions have."""
    HF_CLASSES.require()
    made = object.__new__(HFStorageInfo)
    shape, dtype = torch.Size([3]), torch.float32
    vars(made).update(relative_path="x.safetensors", shape=shape, dtype=dtype)
    return made


def _without(function: Any, features: dict[str, Feature | None]) -> Any:
    """``function`` with keywords that it does not have: dropped, or a reason to skip the test."""
    missing = features.keys() - inspect.signature(function).parameters.keys()
    if not missing:
        return function

    @functools.wraps(function)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        for name in missing & keywords.keys():
            feature = features[name]
            if keywords.pop(name) is not None and feature is not None:
                pytest.skip(feature.reason)
        return function(*args, **keywords)

    return wrapped


def _with_no_dist(function: Any) -> Any:
    """``function`` with ``no_dist=``."""
    if "no_dist" in inspect.signature(function).parameters:
        return function

    @functools.wraps(function)
    def wrapped(*args: Any, no_dist: bool = False, **keywords: Any) -> Any:
        if not no_dist:
            return function(*args, **keywords)
        with patch("torch.distributed.is_initialized", return_value=False):
            return function(*args, **keywords)

    return wrapped


dcp.save = _with_no_dist(_without(dcp.save, {"use_collectives": OWN_METADATA}))
dcp.load = _with_no_dist(dcp.load)
dcp.FileSystemWriter.__init__ = _without(
    dcp.FileSystemWriter.__init__,
    {"_extensions": EXTENSIONS, "serialization_format": SAFETENSORS_FORMAT},
)
