"""A ``.metadata`` cannot run code, import modules, or write into torch's own objects."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from enum import Enum

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from paraload.errors import MetadataError, UnsafeMetadataError
from paraload.metadata import reading as metadata
from paraload.metadata.unpickler import unpickle
from tests.unit.metadata_cases import example

HOME = "torch.distributed.checkpoint.metadata"


# ------------------------------------------------------------------------ pickles, by opcode


def text(value):
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def named(module, name):
    """STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


def line(module, name):
    """GLOBAL, as protocols before 4 have it."""
    return f"c{module}\n{name}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def dict_of(**parts):
    return b"}(" + b"".join(text(name) + part for name, part in parts.items()) + b"u"


def called(function, *arguments):
    """REDUCE."""
    return function + tuple_of(*arguments) + b"R"


def made(kind, *arguments):
    """NEWOBJ."""
    return kind + tuple_of(*arguments) + b"\x81"


def built(what, state):
    """BUILD."""
    return what + state + b"b"


def pickle_of(body, protocol=4):
    return b"\x80" + bytes([protocol]) + body + b"."


def inside(body):
    """A whole metadata with ``body`` somewhere in it."""
    return built(
        made(named(HOME, "Metadata")),
        dict_of(state_dict_metadata=b"}", storage_data=b"}", planner_data=body),
    )


# ------------------------------------------------------------------------ names that are refused

ECHO = text("echo ran >&2")
GLOBALS = {
    "os.system": called(named("os", "system"), ECHO),
    "posix.system": called(named("posix", "system"), ECHO),
    "nt.system": called(line("nt", "system"), ECHO),
    "builtins.eval": called(named("builtins", "eval"), text("1/0")),
    "builtins.exec": called(line("builtins", "exec"), text("1/0")),
    "__builtin__.eval": called(line("__builtin__", "eval"), text("1/0")),
    "builtins.getattr": called(named("builtins", "getattr"), named("os", "path"), text("x")),
    "builtins.__import__": called(named("builtins", "__import__"), text("this")),
    "builtins.print": named("builtins", "print"),
    "builtins.type": named("builtins", "type"),
    "builtins.open": called(named("builtins", "open"), text("/tmp/x"), text("w")),
    "importlib.import_module": called(named("importlib", "import_module"), text("this")),
    "subprocess.Popen": called(named("subprocess", "Popen"), ECHO),
    "functools.partial": called(named("functools", "partial"), text("x")),
    "operator.attrgetter": called(named("operator", "attrgetter"), text("__globals__")),
    "types.FunctionType": named("types", "FunctionType"),
    "pickle.loads": called(named("pickle", "loads"), b"C\x01."),
    "copyreg._reconstructor": named("copyreg", "_reconstructor"),
    "torch.load": called(named("torch", "load"), text("/tmp/x")),
    "torch.hub.load": called(named("torch.hub", "load"), text("a/b"), text("c")),
    "torch.ops.load_library": called(named("torch", "ops.load_library"), text("/tmp/x.so")),
    "torch._utils._rebuild_tensor_v2": named("torch._utils", "_rebuild_tensor_v2"),
    "torch.serialization.load": named("torch.serialization", "load"),
    "torch.serialization._get_layout.__globals__": named(
        "torch.serialization", "_get_layout.__globals__"
    ),
    "torch.os.system": called(named("torch", "os.system"), ECHO),
    f"{HOME}.os.system": called(named(HOME, "os.system"), ECHO),
    f"{HOME}.Metadata.__init__.__globals__": named(HOME, "Metadata.__init__.__globals__"),
    f"{HOME}.Metadata.__class__": named(HOME, "Metadata.__class__"),
    f"{HOME}.dataclass": named(HOME, "dataclass"),
    "torch.Size.__new__": named("torch", "Size.__new__"),
    "torch.Tensor": named("torch", "Tensor"),
    "pathlib.Path": named("pathlib", "Path"),
    "pathlib.Path.unlink": named("pathlib", "Path.unlink"),
    "pathlib.os.system": named("pathlib", "os.system"),
    "no_such_module.x": named("no_such_module", "x"),
    "acme.subprocess.Popen": called(named("acme", "subprocess.Popen"), ECHO),
    "datetime.datetime": named("datetime", "datetime"),
    "commands.Getter": line("commands", "Getter"),  # Python 2's
    "this.s": named("this", "s"),  # importing it prints
    ".": named("", ""),
    "os.posix.system": b"(S'echo ran >&2'\nios\nposix.system\n",  # INST
    "os.getcwd": b"(" + named("os", "getcwd") + b"o",  # OBJ
}


@pytest.mark.parametrize("where", [lambda body: body, inside], ids=["alone", "inside"])
@pytest.mark.parametrize("name", GLOBALS)
def test_other_names_are_refused_and_named(tmp_path, capfd, name, where):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(where(GLOBALS[name])))
    with pytest.raises(UnsafeMetadataError) as caught:
        metadata.read_metadata(path)
    assert caught.value.global_name == name
    for words in (repr(name), str(path), "nothing was executed"):
        assert words in str(caught.value)
    has_recipe = name == "torch.Tensor"
    assert ("allow_globals" in str(caught.value)) == has_recipe
    assert ("ALLOW_GLOBALS" in str(caught.value)) == has_recipe
    assert ("Do not trust this file" in str(caught.value)) != has_recipe
    back = pickle.loads(pickle.dumps(caught.value))
    assert (type(back), str(back)) == (UnsafeMetadataError, str(caught.value))
    assert (back.global_name, back.path) == (name, str(path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["Info", "_Info", "Writer.Info", "Ünfo"])
def test_a_class_of_another_package_is_refused_with_the_way_to_allow_it(tmp_path, name):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(named("acme.writer", name)))
    with pytest.raises(UnsafeMetadataError, match="nothing was executed") as caught:
        metadata.read_metadata(path)
    assert f"allow_globals=('acme.writer.{name}',)" in str(caught.value)
    assert f"PARALOAD_ALLOW_GLOBALS=acme.writer.{name}" in str(caught.value)


@pytest.mark.parametrize("name", ["float3_e1m1", "int9"])
def test_a_dtype_of_a_newer_torch_is_reported(tmp_path, name):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(inside(named("torch", name))))
    with pytest.raises(UnsafeMetadataError, match="A newer torch wrote the file") as caught:
        metadata.read_metadata(path)
    assert "trust" not in str(caught.value)
    assert "GLOBALS" not in str(caught.value).upper()


@pytest.mark.parametrize("name", ["Bad\x1b[2J", "Bad\u202e", "Bad`x`", "Bad\rName"])
def test_a_name_that_is_none_is_shown_escaped_and_not_to_be_allowed(tmp_path, name):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(named("acme.writer", name)))
    with pytest.raises(UnsafeMetadataError) as caught:
        metadata.read_metadata(path)
    assert repr(f"acme.writer.{name}") in str(caught.value)
    assert str(caught.value).isprintable()
    assert "GLOBALS" not in str(caught.value).upper()


def test_other_errors_show_what_is_in_the_file_escaped(tmp_path):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(called(named("torch.serialization", "_get_layout"), text("a\x1bb"))))
    with pytest.raises(MetadataError) as caught:
        metadata.read_metadata(path)
    assert str(caught.value).isprintable()


def test_a_name_of_any_length_makes_a_short_text(tmp_path):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(line("x" * 5000, "y")))
    with pytest.raises(UnsafeMetadataError) as caught:
        metadata.read_metadata(path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("opcodes", [b"\x82\x01", b"Px\n", b"NQ", b"\x97"])
def test_persistent_ids_and_extensions_are_refused(tmp_path, opcodes):
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(inside(opcodes), 5))
    with pytest.raises(MetadataError, match="cannot be unpickled"):
        metadata.read_metadata(path)


# ------------------------------------------------------------- allowed names give no further access


def state_of_torch():
    """What a pickle could write into, if the names it has led to torch's own objects."""
    kinds = [kind for kind in vars(sys.modules[HOME]).values() if isinstance(kind, type)]
    kinds += [WriteItem, WriteItemType, Enum]
    members = [*sys.modules[HOME]._MEM_FORMAT_ENCODING, *WriteItemType]
    layout = torch.serialization._get_layout
    return [dict(vars(thing)) for thing in [*kinds, *members, layout] if hasattr(thing, "__dict__")]


ENCODING = called(named(HOME, "_MEM_FORMAT_ENCODING"), b"K\x00")
SLOTS = tuple_of(
    b"N", dict_of(__init__=named("torch", "Size"), __setstate__=named("torch", "Size"))
)
ATTACKS = {
    "attributes of a class": built(named(HOME, "Metadata"), SLOTS),
    "attributes of a class, as a dict": built(named(HOME, "Metadata"), dict_of(size=b"N")),
    "attributes of Size": built(named("torch", "Size"), SLOTS),
    "attributes of a function": built(named("torch.serialization", "_get_layout"), SLOTS),
    "attributes of an enum": built(named(HOME, "_MEM_FORMAT_ENCODING"), SLOTS),
    "attributes of a member": built(ENCODING, dict_of(_value_=b"K\x07", _name_=text("x"))),
    "slots of a member": built(ENCODING, tuple_of(b"N", dict_of(_value_=b"K\x07"))),
    "attributes of a type": built(named("torch", "float32"), SLOTS),
    "attributes of a path class": built(named("pathlib", "PosixPath"), SLOTS),
    "a class of an index": built(
        made(named(HOME, "MetadataIndex")), tuple_of(b"N", dict_of(fqn=text("x")))
    ),
    "another class": built(
        made(named(HOME, "BytesStorageMetadata")),
        tuple_of(b"N", dict_of(__class__=named(HOME, "Metadata"))),
    ),
    "arguments of a new object": made(named(HOME, "BytesStorageMetadata"), text("x")),
    "a called class": called(named(HOME, "StorageMeta"), text("x")),
    "an unknown layout": called(named("torch.serialization", "_get_layout"), text("os.system")),
    "an unknown format": called(named(HOME, "_MEM_FORMAT_ENCODING"), text("os.system")),
    "an odd path": called(named("pathlib", "PosixPath"), b"]"),
    "an odd device": called(named("torch", "device"), b"]"),
    "an unknown device": called(named("torch", "device"), text("os.system")),
    "an odd ordered dict": called(named("collections", "OrderedDict"), b"]"),
    "an odd size": called(named("torch", "Size"), text("x")),
    "properties of too few": built(made(named(HOME, "TensorProperties")), tuple_of(b"N")),
    "properties of no encoding": built(
        made(named(HOME, "TensorProperties")), tuple_of(b"N", b"N", b"N", b"N", b"N")
    ),
    "a write item of no state": built(
        made(named("torch.distributed.checkpoint.planner", "WriteItem")), b"]"
    ),
    "a call of data": called(made(named(HOME, "Metadata"))),
    "an item of a class": named(HOME, "Metadata") + text("x") + b"Ns",
    "an item for a look-up": named("torch.serialization", "_get_layout") + text("x") + b"Ns",
    "more for a class": named(HOME, "Metadata") + b"Na",
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("where", [lambda body: body, inside], ids=["alone", "inside"])
def test_allowed_names_give_no_further_access(tmp_path, attack, where):
    before = state_of_torch()
    path = tmp_path / ".metadata"
    path.write_bytes(pickle_of(where(ATTACKS[attack])))
    try:
        got = metadata.read_metadata(path)
    except MetadataError:
        pass
    else:  # then it was an attribute of its own object
        assert attack in {"a class of an index", "another class"}
        assert got.planner_data is not None
    assert state_of_torch() == before
    assert unpickle(pickle.dumps(example())) == example()


def test_an_unpickled_class_is_a_stand_in():
    for name in ("Metadata", "TensorProperties", "MetadataIndex"):
        stand_in = unpickle(pickle_of(named(HOME, name)))
        with pytest.raises(pickle.UnpicklingError):
            stand_in.more = 1
        with pytest.raises(pickle.UnpicklingError):
            del stand_in.__new__
        assert not issubclass(stand_in, Metadata | TensorProperties | MetadataIndex)


def test_members_come_out_as_they_are():
    made_of_items = [WriteItem(MetadataIndex("a"), kind) for kind in WriteItemType]
    items = unpickle(pickle.dumps(made_of_items))
    assert items == made_of_items
    assert [item.type for item in items] == list(WriteItemType)
    assert {type(item) for item in items} == {WriteItem}


def test_classes_of_others_are_taken_only_where_they_are_loaded_and_inert(monkeypatch):
    home = "megatron.core.dist_checkpointing.strategies.torch"
    data = pickle_of(made(named(home, "MCoreMetadata")))
    with pytest.raises(pickle.UnpicklingError):
        unpickle(data)

    class Inert:
        pass

    class Acting:
        def __setstate__(self, state):
            raise AssertionError

    module = type(sys)(home)
    monkeypatch.setitem(sys.modules, home, module)
    with pytest.raises(pickle.UnpicklingError):
        unpickle(data)
    module.MCoreMetadata = Inert
    assert type(unpickle(data)) is Inert
    module.MCoreMetadata = Acting
    with pytest.raises(pickle.UnpicklingError):
        unpickle(data)


def pickled(value):
    """The opcodes of a plain value, without PROTO, FRAME and STOP."""
    return pickle.dumps(value, 3)[2:-1]


def test_classes_of_others_that_need_no_package():
    home = "olmo_core.distributed.checkpoint.filesystem"
    state = {"relative_path": "__0_0.distcp", "offset": 8, "length": 16}
    info = unpickle(pickle_of(built(made(named(home, "_StorageInfo")), pickled(state))))
    assert info == _StorageInfo("__0_0.distcp", 8, 16)
    path = named("multistorageclient.pathlib", "MultiStoragePath")
    found = unpickle(pickle_of(built(made(path), pickled({"_path": "msc://bucket/step-7"}))))
    assert os.fspath(found) == str(found) == "msc://bucket/step-7"
    assert pickle.loads(pickle.dumps(found))._path == "msc://bucket/step-7"
    assert "olmo_core" not in sys.modules
    assert "multistorageclient" not in sys.modules


# ------------------------------------------------------------------------ seen from outside

WATCHED = """
import pickle, random, resource, sys
from paraload.metadata import reading as metadata
from paraload.errors import MetadataError
from pathlib import Path

folder, good = Path(sys.argv[1]), Path(sys.argv[2])
metadata.read_metadata(good)
refused = folder / "refused"
seen = []
# The audit events of code that runs, except opening the file itself.
FORBIDDEN = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "shutil.",
             "pickle.find_class", "code.", "sys.")

def watch(event, arguments):
    if event.startswith(FORBIDDEN):
        seen.append((event, arguments))

try:
    metadata.read_metadata(refused)  # imports what raising an error needs
except MetadataError:
    pass
paths = sorted(folder.iterdir())
sys.addaudithook(watch)
count = 0
for path in paths:
    try:
        metadata.read_metadata(path)
    except MetadataError:
        pass
    count += 1
assert seen == [], seen[:5]
print(count)
"""


def in_child(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_interpreter_sees_nothing_run_or_imported(tmp_path):
    good = tmp_path / "good"
    good.write_bytes(pickle.dumps(example()))
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "refused").write_bytes(pickle_of(named("a", "b")))
    bodies = [*GLOBALS.values(), *ATTACKS.values()]
    for number, body in enumerate([*bodies, *map(inside, bodies)]):
        (folder / f"{number:03}").write_bytes(pickle_of(body))
    out, err = in_child(WATCHED, folder, good)
    assert (int(out), err) == (1 + 2 * len(bodies), "")


FUZZED = """
import random, resource, sys
from paraload.metadata import reading as metadata
from paraload.errors import MetadataError
from pathlib import Path

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # a few bytes can ask for all memory
path, data, accepted = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), 0
for seed in range(3000):
    chance = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 4))):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    path.write_bytes(damaged)
    try:
        found = metadata.read_metadata(path)
        assert isinstance(found.state_dict_metadata, dict)
        accepted += 1
    except MetadataError:
        pass
print(accepted)
"""


def test_damaged_bytes_are_accepted_or_a_metadata_error_never_another(tmp_path):
    good = tmp_path / "good"
    good.write_bytes(pickle.dumps(example()))
    out, _ = in_child(FUZZED, tmp_path / "damaged", good)
    assert 0 < int(out) < 3000


def test_an_object_without_attributes_has_none_to_write_to():
    assert vars(unpickle(pickle.dumps(BytesStorageMetadata()))) == {}
