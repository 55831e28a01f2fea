"""``paraload.verify``: finds what is wrong with a checkpoint, and says what it affects."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import paraload
from paraload import cli
from paraload.errors import InvalidOptionError, MetadataError, MissingMetadataError
from paraload.manifest import write_manifest
from paraload.testing import make_checkpoint
from tests.integration import support
from tests.integration.support import rewritten

#: Read whole, located, and located with a payload of several pieces.
STATE = {
    "small": torch.arange(60.0).reshape(20, 3),
    "big": torch.arange(300 * 700.0).reshape(300, 700),
    "huge": torch.arange(5 << 20, dtype=torch.float32),
    "note": {"text": "x" * 100, "steps": list(range(50))},
    "long note": "y" * 400_000,
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def folder(tmp_path):
    support.save(tmp_path / "ckpt", STATE, files=2)
    return tmp_path / "ckpt"


def problems(folder, **keywords):
    report = paraload.verify(folder, **keywords)
    assert report.ok == (not report.problems)
    return report.problems


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_a_good_checkpoint_is_good(tmp_path, zstd, single):
    make_checkpoint(tmp_path, STATE, zstd=zstd, single_file_per_rank=single)
    report = paraload.verify(tmp_path)
    assert report.ok, report
    assert report.remarks == ()
    names = [name for name, value in STATE.items() if torch.is_tensor(value)]
    nested = 2  # "note" is a dictionary, and saved as two objects
    assert (report.tensors, report.objects) == (len(names), nested + 1)
    payload = sum(STATE[name].nbytes for name in names)
    assert report.bytes_checked > payload
    assert report.bytes_unverifiable == 0
    assert str(report).startswith("good: ")


@pytest.mark.parametrize("name", ["small", "big", "note.text", "long note"])
def test_damage_of_any_entry_of_a_record_is_found(folder, name):
    """Every entry of its archive: the header, the payload, and what only torch looks at."""
    file, offset, length = support.records_of(folder)[name]
    data = file.read_bytes()[offset : offset + length]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(i.filename, i.header_offset, i.file_size) for i in archive.infolist()]
        directory = archive.start_dir
    places = {"end of directory": length - 22, "directory": directory}
    for entry, start, size in entries:
        names = sum(int.from_bytes(data[start + at : start + at + 2], "little") for at in (26, 28))
        places[f"{entry} first"] = start + 30 + names
        places[f"{entry} last"] = start + 30 + names + size - 1
        places[f"{entry} header"] = start
    for place, at in places.items():
        support.flip(file, offset + at)
        found = problems(folder)
        assert found, place
        assert {part.name for finding in found for part in finding.parts} == {name}, place
        assert (found[0].path, found[0].start) == (file.name, offset)
        support.flip(file, offset + at)
    assert problems(folder) == ()


def test_a_flip_in_any_piece_of_a_long_payload_is_found(folder):
    file, offset, _ = support.records_of(folder)["huge"]
    for at in (1000, (16 << 20) + 5000, (20 << 20) - 1):
        support.flip(file, offset + support.PAYLOAD + at)
        [finding] = problems(folder)
        assert finding.kind == "checksum"
        assert "affects huge[0:5242880]" in str(finding)
        support.flip(file, offset + support.PAYLOAD + at)


def test_a_damaged_zstd_frame_is_found(tmp_path):
    make_checkpoint(tmp_path, {"w": torch.arange(50_000)}, zstd=True, files=1)
    file, offset, length = support.records_of(tmp_path)["w"]
    for at in range(10, length - 10, length // 7):
        support.flip(file, offset + at)
        [finding] = problems(tmp_path)
        assert finding.parts[0].name == "w"
        support.flip(file, offset + at)


def test_files_that_are_missing_or_cut_are_reported_with_all_that_they_affect(folder):
    first, second = support.data_files(folder)
    affected = {
        path.name: {name for name, (file, *_) in support.records_of(folder).items() if file == path}
        for path in (first, second)
    }
    first.unlink()
    os.truncate(second, 0)
    found = {finding.path: finding for finding in problems(folder)}
    assert found[first.name].kind == "missing-file"
    assert found[second.name].kind == "short-file"
    for path, finding in found.items():
        assert {part.name for part in finding.parts} == affected[path]


def test_what_is_left_of_a_cut_file_is_checked(folder):
    file, offset, length = support.records_of(folder)["huge"]
    os.truncate(file, offset + length - 1)
    cut = {
        name
        for name, (f, o, n) in support.records_of(folder).items()
        if f == file and o + n > offset + length - 1
    }
    [finding] = problems(folder)
    assert {part.name for part in finding.parts} == cut


@pytest.mark.parametrize(
    ("path", "words"), [("../x", "leaves the folder"), ("\ud800", "cannot be the name of a file")]
)
def test_paths_that_leave_the_folder_are_not_opened(folder, path, words):
    with rewritten(folder) as metadata:
        metadata.storage_data[MetadataIndex("small", torch.Size([0, 0]))].relative_path = path
    [finding] = problems(folder)
    assert finding.kind == "unsafe-path"
    assert words in finding.problem
    assert finding.parts[0].name == "small"


def test_what_is_stored_is_compared_with_the_metadata(folder):
    with rewritten(folder) as metadata:
        metadata.state_dict_metadata["big"].properties.dtype = torch.float64
        metadata.state_dict_metadata["small"].size = torch.Size([19, 3])
        metadata.state_dict_metadata["small"].chunks[0] = ChunkStorageMetadata(
            torch.Size([0, 0]), torch.Size([19, 3])
        )
    found = {finding.parts[0].name: finding for finding in problems(folder)}
    assert found["big"].expected == "float64 of shape (300, 700)"
    assert found["small"].got == "float32 of shape (20, 3)"


def test_holes_overlaps_and_entries(folder):
    with rewritten(folder) as metadata:
        entries, places = metadata.state_dict_metadata, metadata.storage_data
        entries["small"].size = torch.Size([21, 3])
        del places[MetadataIndex("big", torch.Size([0, 0]))]
        places[MetadataIndex("unused", torch.Size([0]))] = places[MetadataIndex("long note")]
        entries["twin"] = entries["huge"]
        place = places[MetadataIndex("huge", torch.Size([0]))]
        places[MetadataIndex("twin", torch.Size([0]))] = dataclasses.replace(place)
    found = {finding.kind: finding for finding in problems(folder)}
    assert "no chunk has the elements from (20, 0) to (21, 3)" in found["coverage"].problem
    assert found["missing-entry"].parts[0].name == "big"
    assert found["unused-entry"].parts[0].name == "unused"
    both = {part.name for part in found["overlapping-records"].parts}
    assert both == {"huge", "twin"}


def test_orphans_are_remarks(folder):
    first = support.data_files(folder)[0]
    size = first.stat().st_size
    with first.open("ab") as file:
        file.write(b"more")
    (folder / "left.tmp").write_bytes(b"x")
    report = paraload.verify(folder)
    assert report.ok
    [bytes_, file] = report.remarks
    assert (bytes_.kind, file.kind) == ("orphan-bytes", "orphan-file")
    assert (bytes_.path, bytes_.start, bytes_.end) == (first.name, size, size + 4)
    assert file.path == "left.tmp"


def test_old_records_and_unchecked_ones_are_counted(tmp_path):
    legacy = support.save_as_legacy(tmp_path, torch.ones(4, 4))
    report = paraload.verify(tmp_path)
    assert report.ok
    assert report.uncompared == 1
    assert report.bytes_unverifiable == legacy.stat().st_size
    assert "not compared: 1" in str(report)


def test_bad_metadata_is_an_error(folder):
    (folder / ".metadata").write_bytes(b"\x80\x04.")
    with pytest.raises(MetadataError):
        paraload.verify(folder)
    (folder / ".metadata").unlink()
    with pytest.raises(MissingMetadataError, match="incomplete checkpoint"):
        paraload.verify(folder)


def test_nothing_is_left_when_it_is_stopped(folder):
    def stop(progress):
        raise KeyboardInterrupt

    from paraload.testing import leaked, resources

    before = resources()
    with pytest.raises(KeyboardInterrupt):
        paraload.verify(folder, progress=stop)
    assert leaked(before) == []


def test_progress_reaches_the_end(folder):
    seen = []
    paraload.verify(folder, progress=seen.append, max_workers=2)
    last = seen[-1]
    assert last.bytes_done == last.bytes_total
    assert (last.items_done, last.files_done) == (last.items_total, 2)


# ------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("key", [None, b"secret", b"k" * 100])
def test_only_a_manifest_sees_that_shards_were_swapped(tmp_path, key):
    saved = {name: torch.full((200,), float(n)) for n, name in enumerate("ab")}
    support.save(tmp_path / "ckpt", saved, files=2)
    first, second = support.data_files(tmp_path / "ckpt")
    manifest = tmp_path / "ckpt" / "manifest.json"
    assert write_manifest(tmp_path / "ckpt", manifest, key=key) == 3
    report = paraload.verify(tmp_path / "ckpt", manifest=manifest, key=key)
    assert "\n3 files as in the manifest" in report.summary()
    assert report.ok
    assert report.remarks == ()
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    assert problems(tmp_path / "ckpt") == ()
    found = problems(tmp_path / "ckpt", manifest=manifest, key=key)
    assert [finding.path for finding in found] == [first.name, second.name]
    assert "not the one that the manifest lists" in found[0].problem
    first.unlink()
    (tmp_path / "ckpt" / "new").touch()
    found = {
        f.path: f.problem
        for f in problems(tmp_path / "ckpt", manifest=manifest, key=key)
        if f.kind == "manifest"
    }
    assert found[first.name] == "the file is missing"
    assert found["new"] == "the manifest does not list the file"


def test_a_key_is_needed_where_there_was_one(folder, tmp_path):
    for given, needed in ((b"a", None), (None, b"a")):
        write_manifest(folder, tmp_path / "m", key=given)
        with pytest.raises(InvalidOptionError, match=r"made with(out)? a key"):
            paraload.verify(folder, manifest=tmp_path / "m", key=needed)
    write_manifest(folder, tmp_path / "m", key=b"a")
    with pytest.raises(InvalidOptionError, match="made with another key"):
        paraload.verify(folder, manifest=tmp_path / "m", key=b"b")


def test_a_format_without_checksums_is_told(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    text = paraload.verify(tmp_path).summary()
    assert "the format has no checksums; only a manifest can show damaged values" in text
    assert "CRC-32" not in text
    write_manifest(tmp_path, tmp_path / "m")
    report = paraload.verify(tmp_path, manifest=tmp_path / "m")
    assert report.summary().endswith("the format has no checksums\n1 file as in the manifest")
    with pytest.raises(InvalidOptionError, match=r"nope: cannot be read .No such file"):
        paraload.verify(tmp_path, manifest=tmp_path / "nope")


def test_a_manifest_with_an_unknown_key_still_distinguishes_files(folder, tmp_path):
    write_manifest(folder, tmp_path / "m", key=b"a")
    older = json.loads((tmp_path / "m").read_text())
    del older["key_digest"]
    (tmp_path / "m").write_text(json.dumps(older))
    assert problems(folder, manifest=tmp_path / "m", key=b"a") == ()
    found = problems(folder, manifest=tmp_path / "m", key=b"b")
    assert [finding.kind for finding in found] == ["manifest"] * 3


@pytest.mark.parametrize(
    "text", ["", "{}", '{"version": 1}', "[1]", '{"version": 9, "digest": "sha256", "files": {}}']
)
def test_other_files_are_not_manifests(folder, tmp_path, text):
    (tmp_path / "m").write_text(text)
    with pytest.raises(InvalidOptionError, match=r"m: (is not a manifest|version 9)"):
        paraload.verify(folder, manifest=tmp_path / "m")


# ---------------------------------------------------------------------------------- command line


def run(capsys, *words):
    status = cli.main(["verify", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_says_what_is_affected(folder, capsys, tmp_path):
    assert run(capsys, folder)[0] == 0
    file, offset, _ = support.records_of(folder)["big"]
    support.flip(file, offset + support.PAYLOAD + 5000)
    status, out, _ = run(capsys, folder, "--json", tmp_path / "out.json")
    assert status == 1
    assert "BAD:" in out
    assert "big[0:300, 0:700]" in out
    assert file.name in out
    assert '"ok": false' in (tmp_path / "out.json").read_text()


def test_the_command_writes_and_compares_manifests(folder, capsys, tmp_path):
    manifest, key = tmp_path / "m.json", tmp_path / "key"
    key.write_bytes(os.urandom(32))
    words = ("--key-file", key)
    status, _, err = run(capsys, folder, "--write-manifest", manifest, *words)
    assert (status, f"manifest written to {manifest}" in err) == (0, True)
    assert run(capsys, folder, "--manifest", manifest, *words)[0] == 0
    support.data_files(folder)[0].touch()
    with support.data_files(folder)[0].open("ab") as file:
        file.write(b"x")
    status, out, _ = run(capsys, folder, "--manifest", manifest, *words)
    assert status == 1
    assert "the file is not the one that the manifest lists" in out
    support.flip(support.data_files(folder)[0], 1000)
    status, _, err = run(capsys, folder, "--write-manifest", tmp_path / "other", *words)
    assert (status, "no manifest written" in err) == (1, True)
    assert not (tmp_path / "other").exists()


def test_a_check_that_fails_leaves_no_manifest(folder, capsys, tmp_path):
    (folder / ".metadata").write_bytes(b"\x80\x04.")
    status, _, err = run(capsys, folder, "--write-manifest", tmp_path / "m")
    assert (status, "manifest written" in err) == (1, False)
    assert not (tmp_path / "m").exists()


def test_bad_calls_are_2_and_bad_metadata_is_1(folder, capsys, tmp_path):
    assert run(capsys, tmp_path / "nothing")[0] == 2
    (tmp_path / "key").write_bytes(b"k")
    assert run(capsys, folder, "--key-file", tmp_path / "key")[0] == 2
    words = ("--write-manifest", tmp_path / "m")
    assert run(capsys, folder, "--key-file", tmp_path / "nothing", *words)[0] == 2
    assert run(capsys, folder, "--manifest", tmp_path / "key", *words)[0] == 2
    assert run(capsys, folder, "--manifest", tmp_path / "nothing")[0] == 2
    assert run(capsys, tmp_path)[0] == 1


def test_no_torch_code_of_the_checkpoint_runs(tmp_path):
    """Objects are read and summed, never unpickled."""
    code = (
        "import sys, paraload\n"
        "sys.addaudithook(lambda e, a: sys.exit('unpickled') if e == 'pickle.find_class'"
        " and 'Trap' in str(a) else None)\n"
        "report = paraload.verify(sys.argv[1])\n"
        "assert report.ok, report\n"
    )
    support.save(tmp_path / "ckpt", {"trap": Trap(str(tmp_path / "touched"))})
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "ckpt"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "touched").exists()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


# ----------------------------------------------------------------------------------------- kinds


def test_every_error_of_an_item_has_a_kind_of_its_own():
    from paraload import errors
    from paraload.verification.report import KINDS, Finding

    about_targets = {  # a verification has none
        errors.AliasedTargetError,
        errors.KindMismatchError,
        errors.MissingKeyError,
        errors.TargetMemoryError,
    }
    kinds = {
        error: Finding.of(error("it is broken", path="a"), ()).kind
        for error in vars(errors).values()
        if isinstance(error, type)
        and issubclass(error, errors.ItemReadError)
        and error not in about_targets
    }
    assert set(kinds.values()) <= set(KINDS)
    assert len(set(kinds.values())) == len(kinds)

    class OwnError(errors.ShortFileError):
        pass

    assert Finding.of(OwnError("it is broken"), ()).kind == "short-file"
    assert kinds[errors.ItemReadError] == "unexpected"


def test_kinds_are_words_for_programs_and_problems_are_for_people(folder, tmp_path):
    """Everything at once that a checkpoint can have, or nearly so."""
    from paraload.verification.report import KINDS

    write_manifest(folder, tmp_path / "m")
    file, offset, _ = support.records_of(folder)["huge"]
    support.flip(file, offset + 5000)
    with rewritten(folder) as metadata:
        entries, places = metadata.state_dict_metadata, metadata.storage_data
        entries["small"].size = torch.Size([21, 3])
        del places[MetadataIndex("big", torch.Size([0, 0]))]
        places[MetadataIndex("unused", torch.Size([0]))] = places[MetadataIndex("long note")]
        for name, path in (("gone", "gone.distcp"), ("out", "../x"), ("cut", file.name)):
            entries[name] = entries["long note"]
            info = dataclasses.replace(places[MetadataIndex("long note")], relative_path=path)
            if name == "cut":
                info.offset = file.stat().st_size
            places[MetadataIndex(name)] = info
        entries["twin"] = entries["huge"]
        places[MetadataIndex("twin", torch.Size([0]))] = dataclasses.replace(
            places[MetadataIndex("huge", torch.Size([0]))]
        )
    (folder / "left.tmp").touch()
    report = paraload.verify(folder, manifest=tmp_path / "m")
    found = [*report.problems, *report.remarks]
    assert {finding.kind for finding in found} >= {
        "checksum",
        "coverage",
        "manifest",
        "missing-entry",
        "missing-file",
        "orphan-file",
        "overlapping-records",
        "short-file",
        "unsafe-path",
        "unused-entry",
    }
    for finding in found:
        assert finding.kind in KINDS
        assert " " in finding.problem
        assert not finding.problem.endswith("Error")
        assert finding.kind != finding.problem
    kinds = [finding["kind"] for finding in report.to_dict()["problems"]]
    assert kinds == [finding.kind for finding in report.problems]


def test_the_table_has_kinds_and_problems(folder, capsys):
    support.data_files(folder)[0].unlink()
    assert cli.main(["verify", str(folder)]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "__0_0.distcp" in line]
    assert line.split()[:4] == ["missing-file", "file", "is", "missing"]
