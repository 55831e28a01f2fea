"""The contract of record formats."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from functools import partial

from paraload.core.checksum import crc32
from paraload.core.records import TensorRecord
from paraload.formats.base import ItemFormat, NeedBytes, Unsupported, locate


def _fresh(item_format: ItemFormat) -> ItemFormat:
    """The format as it arrives in a worker: without anything that it may remember."""
    twin: ItemFormat = pickle.loads(pickle.dumps(item_format))
    return twin


def _head(record: bytes, nbytes: int) -> bytes:
    return record[:nbytes]


class FormatContract:
    """What every :class:`~paraload.formats.base.ItemFormat` does.

    Fixtures: ``item_format``; ``records``, complete records as ``bytes -> payload``, each of them
    located when all of it is shown.
    """

    def test_payloads_are_found_with_any_head(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """With more and more bytes: NeedBytes asks for more, and the answer stays the same."""
        for record, payload in records.items():
            wanted, asked = 1, 0  # fewer than locate() would begin with
            while isinstance(found := item_format.locate(record[:wanted], len(record)), NeedBytes):
                asked += 1
                assert wanted < found.nbytes <= len(record)
                assert asked < 64  # noqa: PLR2004 - it must come to an end
                wanted = found.nbytes
            assert isinstance(found, TensorRecord)
            assert record[found.start : found.end] == payload
            assert item_format.locate(record, len(record)) == found
            assert locate(_fresh(item_format), partial(_head, record), len(record)) == found

    def test_every_prefix_is_answered_with_the_truth_or_a_question(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """Byte by byte: never "no", never another payload; and the same with what it remembers."""
        for record in records:
            whole = _fresh(item_format).locate(record, len(record))
            remembering = _fresh(item_format)
            remembering.locate(record, len(record))
            for wanted in range(min(len(record), 1500)):
                for fmt in (_fresh(item_format), remembering):
                    found = fmt.locate(record[:wanted], len(record))
                    if isinstance(found, NeedBytes):
                        assert wanted < found.nbytes <= len(record)
                    else:
                        assert found == whole

    def test_bytes_behind_a_record_change_nothing(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """A length that is too long leads to the same payload."""
        for record in records:
            for behind in (b"\0", b"PK\x03\x04" * 20, record):
                longer = record + behind
                found = _fresh(item_format).locate(longer, len(longer))
                assert found == item_format.locate(record, len(record))

    def test_the_checksum_is_the_payload_s(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """Header or trailer tell the CRC-32 of the payload."""
        for record, payload in records.items():
            found = item_format.locate(record, len(record))
            assert isinstance(found, TensorRecord)
            crc = found.crc
            if found.trailer is not None:
                start, end = found.trailer
                crc = item_format.read_trailer(record[start:end], len(payload))
            assert crc in ({0, crc32(payload)} if item_format.has_checksum else {None})

    def test_damage_never_raises_nor_leads_outside(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """Whatever the bytes, a record that is found lies inside, and so do its elements."""
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
        """Not an exception, and not a payload."""
        chance = random.Random(2)  # noqa: S311 - repeatable
        noise = [chance.randbytes(chance.randrange(3000)) for _ in range(200)]
        for head in (b"", b"x", b"not a record" * 100, bytes(5000), *noise):
            assert isinstance(item_format.locate(head, len(head)), Unsupported)
