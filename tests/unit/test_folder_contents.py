"""A folder that is no checkpoint is told as what it is."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed.checkpoint as dcp

import paraload
from paraload.errors import MissingMetadataError
from paraload.metadata.folder_contents import in_natural_order


def refusal(path):
    with pytest.raises(MissingMetadataError) as caught:
        paraload.load({"w": torch.zeros(2)}, path, no_dist=True)
    return str(caught.value)


def test_a_folder_of_steps_names_the_newest(tmp_path):
    for step, age_s in ((10, 0), (9, 50), (200, 100)):
        folder = tmp_path / f"step-{step}"
        dcp.save({"w": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
        written = (folder / ".metadata").stat().st_mtime - age_s
        os.utime(folder / ".metadata", (written, written))
    (tmp_path / "latest.txt").write_text("step-10")
    assert (
        "the newest of 3 checkpoints below this folder is 'step-10': load that folder"
        in refusal(tmp_path)
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([".metadata.tmp", "__0_0.distcp"], "the save did not finish"),
        (
            ["a.gguf", "pytorch_model.bin"],
            "1 file of GGUF, which paraload does not read ('a.gguf')",
        ),
        (
            ["m-2.bin", "m-1.bin"],
            "2 files of torch.save, which paraload.read reads one by one ('m-1.bin')",
        ),
        (["rank0.pt"], "1 file of torch.save"),
        (["a.pt", "b.pth"], "2 files of torch.save"),
        (["__0_0.distcp"], "an incomplete checkpoint? This file is written last"),
        ([], "there are no files here"),
        (
            ["a/model.safetensors", "notes.txt"],
            "the only checkpoint below this folder is 'a': load that folder",
        ),
    ],
)
def test_other_files_are_named(tmp_path, names, told):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    assert told in refusal(tmp_path)


def test_a_reader_of_dcp_names_the_one_of_safetensors(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MissingMetadataError, match=r"of safetensors, which paraload\.load"):
        paraload.ParallelFileSystemReader(tmp_path).read_metadata()


def test_numbers_are_sorted_by_their_value():
    names = ["step-10/x", "step-9/x", "a", "10", "9"]
    assert in_natural_order(names) == ["a", "step-9/x", "step-10/x", "9", "10"]
