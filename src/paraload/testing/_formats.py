"""The contract of record formats."""

import pickle
import random
from collections.abc import Mapping
from functools import partial

from paraload.core.checksum import crc32
from paraload.core.records import TensorRecord
from paraload.formats import ItemFormat, NeedBytes, Unsupported, locate


def _fresh(item_format: ItemFormat) -> ItemFormat:
    """The format as a worker receives it: without caches."""
    twin: ItemFormat = pickle.loads(pickle.dumps(item_format))
    return twin


def _head(record: bytes, nbytes: int) -> bytes:
    return record[:nbytes]


class FormatContract:
    """What every :class:`~paraload.formats.ItemFormat` does.

    Fixtures: ``item_format``; ``records``, complete records as ``bytes -> payload``.
    """

    def test_a_payload_is_found_from_any_number_of_first_bytes(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        for record, payload in records.items():
            wanted, asked = 1, 0  # fewer bytes than locate() begins with
            while isinstance(found := item_format.locate(record[:wanted], len(record)), NeedBytes):
                asked += 1
                assert wanted < found.nbytes <= len(record)
                assert asked < 64  # noqa: PLR2004 - an endless loop otherwise
                wanted = found.nbytes
            assert isinstance(found, TensorRecord)
            assert record[found.start : found.end] == payload
            assert item_format.locate(record, len(record)) == found
            assert locate(_fresh(item_format), partial(_head, record), len(record)) == found

    def test_a_prefix_gives_the_payload_or_needs_bytes(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        for record in records:
            cached = _fresh(item_format)
            whole = cached.locate(record, len(record))
            for wanted in range(min(len(record), 1500)):
                for fmt in (_fresh(item_format), cached):
                    found = fmt.locate(record[:wanted], len(record))
                    if isinstance(found, NeedBytes):
                        assert wanted < found.nbytes <= len(record)
                    else:
                        assert found == whole

    def test_bytes_after_a_record_are_ignored(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        for record in records:
            for behind in (b"\0", b"PK\x03\x04" * 20, record):
                longer = record + behind
                found = _fresh(item_format).locate(longer, len(longer))
                assert found == item_format.locate(record, len(record))

    def test_header_or_trailer_have_the_checksum_of_the_payload(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        for record, payload in records.items():
            found = item_format.locate(record, len(record))
            assert isinstance(found, TensorRecord)
            crc = found.crc
            if found.trailer is not None:
                start, end = found.trailer
                crc = item_format.read_trailer(record[start:end], len(payload))
            assert crc in ({0, crc32(payload)} if item_format.has_checksum else {None})

    def test_a_damaged_record_raises_nothing_and_stays_in_bounds(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        chance = random.Random(1)  # noqa: S311 - repeatable damage
        for record in records:
            for _ in range(300):
                damaged = bytearray(record)
                for _ in range(chance.randint(1, 4)):
                    damaged[chance.randrange(min(len(damaged), 1000))] = chance.randrange(256)
                kept = chance.randint(0, len(damaged))
                found = item_format.locate(bytes(damaged[:kept]), kept)
                if isinstance(found, TensorRecord):
                    assert 0 <= found.start <= found.end <= kept
                    assert found.is_sound()

    def test_other_bytes_are_unsupported(self, item_format: ItemFormat) -> None:
        chance = random.Random(2)  # noqa: S311 - repeatable
        noise = [chance.randbytes(chance.randrange(3000)) for _ in range(200)]
        for head in (b"", b"x", b"not a record" * 100, bytes(5000), *noise):
            assert isinstance(item_format.locate(head, len(head)), Unsupported)
