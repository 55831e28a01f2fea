"""Hooks for worker processes, in a module that they can import without torch."""

from __future__ import annotations

import io
import os
import signal
import time

#: A cipher that any reviewer can break.
SCRAMBLED = bytes(byte ^ 0x5A for byte in range(256))


def sliced(stream, item_metadata):
    """The documented hook."""
    stream.seek(item_metadata.offset)
    return io.BytesIO(stream.read(item_metadata.length))


def narrowed(tensor, storage_offsets, lengths):
    for dim, (offset, length) in enumerate(zip(storage_offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor


def doubled(tensor, storage_offsets, lengths):
    return narrowed(tensor, storage_offsets, lengths) * 2


def to_double(tensor, storage_offsets, lengths):
    return narrowed(tensor, storage_offsets, lengths).double()


def decoded(read_item, transform_descriptors, stream):
    assert transform_descriptors == ("stream.unheard-of/7",)
    return stream


def passed(read_item, transform_descriptors, stream):
    assert read_item.storage_index.fqn
    assert transform_descriptors == ()
    return stream


def unscrambled(read_item, transform_descriptors, stream):
    """Undoes ``support.scramble``."""
    return io.BytesIO(stream.read().translate(SCRAMBLED))


def kill_worker(stream, item_metadata):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(read_item, transform_descriptors, stream):
    raise ValueError(f"no key for {read_item.storage_index.fqn}")


class SlowSource:
    """A source whose reads and checks are slow, in each process."""

    def __init__(self, inner, seconds=0.2):
        self._inner, self._seconds = inner, seconds

    def __reduce__(self):
        return SlowSource, (self._inner, self._seconds)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def stat(self, path):
        time.sleep(self._seconds)
        return self._inner.stat(path)

    def read(self, path, reads):
        time.sleep(self._seconds)
        return self._inner.read(path, reads)

    def read_rows(self, path, base, run, memory):
        return None


def slow_slice(stream, item_metadata):
    time.sleep(0.2)
    return sliced(stream, item_metadata)


def exit_worker(stream, item_metadata):
    os._exit(3)


def crash_worker(stream, item_metadata):
    os.kill(os.getpid(), signal.SIGSEGV)
