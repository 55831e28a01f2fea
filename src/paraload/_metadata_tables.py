"""The tables of a ``.metadata``. A pair like an earlier one is taken at a glance, and most are.

    pair --> looks --like an earlier one, but for its name and its place--> columns
               |                                                               ^
               `--not yet known: opcode by opcode, and known from now on ------'

What a pair looks like is what it is, since opcodes are a prefix code: bytes that have been read as
whole opcodes once are the same opcodes again. And they mean the same, since what the memo has under
a number does not change.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.checkpoint import metadata

from paraload._metadata_kinds import StorageInfo, attributes_of, place_kind, tensor_kind
from paraload._plain_opcodes import index_at, number_at
from paraload._plain_values import Made, Table, require

if TYPE_CHECKING:
    from paraload._plain_pickle import PlainPickle

__all__ = ["Entries", "Paths", "Places"]


class _Way:
    """Bytes that many pairs have in common, and what they mean.

    Args:
        parts: the bytes, around those that are each pair's own.
        kind: of the pairs.
        numbers: how many things of each pair the memo numbers.
    """

    __slots__ = ("kind", "numbers", "parts")

    def __init__(self, parts: tuple[bytes, ...], kind: int, numbers: int) -> None:
        self.parts = parts
        self.kind = kind
        self.numbers = numbers


class _Pairs(Table):
    """Pairs in columns. Most are like an earlier one, and most often like the one before."""

    #: What a pair looks like. The groups are what it may have in common with others.
    looks: re.Pattern[bytes]

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kind_of = array("I")
        self.kinds = _numbers()
        self._ways: dict[tuple[bytes, ...], _Way] = {}
        self._last: _Way | None = None
        #: The way of the pair that followed on the last one of a way.
        self.after: dict[_Way | None, _Way] = {}
        #: How many pairs may yet turn out to be none that can be known: looking costs up to 0.1 ms.
        self._looks_left = 1000

    def take(self, pickle: PlainPickle) -> None:
        while pickle.data[pickle.at] != _SETITEMS:
            start = pickle.at
            found = self.looks.match(pickle.data, start) if self._looks_left > 0 else None
            way = self._ways.get(found.groups()) if found is not None else None
            if way is not None:
                self._turn_to(way)
                self._last = self.take_known(pickle, way)
            if pickle.at == start:
                self._take_one(pickle, found)

    def take_known(self, pickle: PlainPickle, way: _Way) -> _Way:
        """Take pairs as long as they are of this way, or of the one after it; the last one."""
        raise NotImplementedError

    def is_whole(self, value: Any, opcode: int) -> bool:
        """Whether it is a whole value, before this opcode."""
        raise NotImplementedError

    def means(self, found: re.Match[bytes], pickle: PlainPickle, begins: set[int]) -> bool:
        """Whether the pair that was put last, with these opcodes, means what it looks like."""
        raise NotImplementedError

    def _turn_to(self, way: _Way) -> None:
        self.after[self._last] = self._last = way

    def _take_one(self, pickle: PlainPickle, found: re.Match[bytes] | None) -> None:
        memo_length = pickle.memo_length
        key, value, begins = pickle.pair(self.is_whole)
        self.put(key, value)
        if found and found.end() == pickle.at and self.means(found, pickle, begins):
            numbers = pickle.memo_length - memo_length
            way = self._ways[found.groups()] = _Way(found.groups(), self.kind_of[-1], numbers)
            self._turn_to(way)
        else:
            self._looks_left -= 1


_GET: Final = rb"(?:h.|j....)"
_INT: Final = rb"(?:K.|M..|J....|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}))"


class Entries(_Pairs):
    """Names of entries, and their kinds."""

    looks = re.compile(
        rb"\x8c.[^\x94]{0,255}(\x94GET\)\x81\x94(?:|.{0,100000}?ub))(?=[\x8cu])".replace(
            b"GET", _GET
        ),
        re.DOTALL,
    )

    def put(self, key: Any, value: Any) -> None:
        require(type(key) is str)
        self.names.append(key)
        self.kind_of.append(self.kinds[tensor_kind(value)])

    def take_known(self, pickle: PlainPickle, way: _Way) -> _Way:
        data, at, memo, memo_length = pickle.data, pickle.at, pickle.memo, pickle.memo_length
        [entry] = way.parts
        while data[at] == _SHORT_BINUNICODE:
            end = at + 2 + data[at + 1]
            if not data.startswith(entry, end):
                after = self.after.get(way, way)
                [entry] = after.parts
                if not data.startswith(entry, end):
                    break
                way = after
            memo[memo_length] = name = data[at + 2 : end].decode("utf-8", "surrogatepass")
            memo_length += way.numbers
            self.names.append(name)
            self.kind_of.append(way.kind)
            at = end + len(entry)
        pickle.at, pickle.memo_length = at, memo_length
        return way

    def is_whole(self, value: Any, opcode: int) -> bool:
        if type(value) is not Made or opcode == _MEMOIZE:
            return False
        return value.state is not None or value.kind is metadata.BytesStorageMetadata

    def means(self, found: re.Match[bytes], _: PlainPickle, begins: set[int]) -> bool:
        return found.start(1) in begins


class Places(_Pairs):
    """Names of entries, where their parts are, and the kinds of these places."""

    looks = re.compile(
        rb"(GET\)\x81\x94\}\x94\(GET)GET(.{0,1000}?GET)INT(GET)INT(.{0,1000}?ub)(?=[hju])".replace(
            b"GET", _GET
        ).replace(b"INT", _INT),
        re.DOTALL,
    )

    def __init__(self) -> None:
        super().__init__()
        self.offsets = array("q")
        self.lengths = array("q")

    def put(self, key: Any, value: Any) -> None:
        index, info = attributes_of(key, metadata.MetadataIndex), attributes_of(value, StorageInfo)
        require(index.keys() <= {"fqn", "index", "offset"} and type(index["fqn"]) is str)
        require(info.keys() - {"transform_descriptors"} == {"relative_path", "offset", "length"})
        require(type(info["offset"]) is type(info["length"]) is int)
        self.names.append(index["fqn"])
        self.offsets.append(info["offset"])
        self.lengths.append(info["length"])
        self.kind_of.append(self.kinds[place_kind(index, info)])

    def take_known(self, pickle: PlainPickle, way: _Way) -> _Way:
        data, at, memo, memo_length = pickle.data, pickle.at, pickle.memo, pickle.memo_length
        names, offsets, lengths = self.names, self.offsets, self.lengths
        start, middle, between, end = way.parts
        while data.startswith(start, at):
            try:
                name, middle_at = index_at(data, at + len(start))
                if not data.startswith(middle, middle_at):
                    after = self.after.get(way, way)
                    _, middle, between, end = after.parts
                    if not data.startswith(middle, middle_at):
                        break
                    way = after
                offset, between_at = number_at(data, middle_at + len(middle))
                length, end_at = number_at(data, between_at + len(between))
            except KeyError:
                break
            if not (data.startswith(between, between_at) and data.startswith(end, end_at)):
                break
            names.append(memo[name])
            offsets.append(offset)
            lengths.append(length)
            self.kind_of.append(way.kind)
            memo_length += way.numbers
            at = end_at + len(end)
        pickle.at, pickle.memo_length = at, memo_length
        return way

    def is_whole(self, value: Any, opcode: int) -> bool:  # noqa: ARG002 - its state tells
        return type(value) is Made and value.state is not None

    def means(self, found: re.Match[bytes], pickle: PlainPickle, begins: set[int]) -> bool:
        data, memo, starts = pickle.data, pickle.memo, [found.start(n) for n in range(1, 5)]
        ends = [found.end(n) for n in range(1, 4)]
        if not begins.issuperset(starts + ends):
            return False
        keys = [memo[index_at(data, max(b for b in begins if b < at))[0]] for at in ends]
        name = memo[index_at(data, ends[0])[0]]
        offset, length = (number_at(data, at)[0] for at in ends[1:])
        return keys == ["fqn", "offset", "length"] and (name, offset, length) == (
            self.names[-1],
            self.offsets[-1],
            self.lengths[-1],
        )


class Paths(Table):
    """Names, and the keys that lead to each in the nested state dict."""

    def __init__(self) -> None:
        self.paths: dict[str | int, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        require(type(key) in {str, int})
        self.paths[key] = value

    def take(self, pickle: PlainPickle) -> None:
        data, memo, memo_length = pickle.data, pickle.memo, pickle.memo_length
        at = pickle.at
        texts: list[Any] = []
        while True:
            code = data[at]
            if code in _GETS:
                index, at = index_at(data, at)
                texts.append(memo[index])
            elif code == _FRAME:
                at += 9
            elif code == _SHORT_BINUNICODE and data[end := at + 2 + data[at + 1]] == _MEMOIZE:
                text = memo[memo_length] = data[at + 2 : end].decode("utf-8", "surrogatepass")
                texts.append(text)
                memo_length += 1
                at = end + 1
            elif len(texts) == _TUPLES.get(code) and data[at + 1] == _MEMOIZE:
                require(type(texts[0]) is str)
                self.paths[texts[0]] = memo[memo_length] = tuple(texts[1:])
                texts.clear()
                memo_length += 1
                at += 2
                pickle.at, pickle.memo_length = at, memo_length
            else:
                return  # the general way takes this pair, and those behind it


_SETITEMS: Final = ord("u")
_MEMOIZE: Final = 0x94
_FRAME: Final = 0x95
_SHORT_BINUNICODE: Final = 0x8C
_GETS: Final = b"hj"
#: How many texts, with the name before them, make a pair with TUPLE1, TUPLE2 and TUPLE3.
_TUPLES: Final = {0x85: 2, 0x86: 3, 0x87: 4}


def _numbers() -> defaultdict[Any, int]:
    """Gives every new key the next number."""
    return defaultdict(itertools.count().__next__)
