"""Makes a ``Metadata`` of the bytes of a metadata file, or an error that says what is wrong.

torch's own reader takes five times as long, mostly because the garbage collector walks the new
objects again and again; here it is paused.
"""

from __future__ import annotations

from typing import Any, Final

from torch.distributed.checkpoint.metadata import Metadata

from paraload._text import printable
from paraload.core.pickle_scan import ExcessError
from paraload.errors import MetadataError, UnsafeMetadataError
from paraload.metadata.unpickler import GlobalRefusedError, unpickle
from paraload.metadata.validation import metadata_fault
from paraload.runtime.gc_pause import collector_paused

_DAMAGED: Final = "The file is damaged, or a newer torch wrote it"
_SHOWN_OF_NAME: Final = 200


def parse_metadata(data: bytes, *, path: str, allow_globals: tuple[Any, ...]) -> Metadata:
    """The validated metadata; ``path`` is for errors.

    Raises:
        UnsafeMetadataError: the pickle names something that is not allowed; nothing was run.
        MetadataError: it is damaged, or not metadata.
    """
    with collector_paused():
        try:
            metadata: Metadata = unpickle(data, allow_globals)
        except GlobalRefusedError as error:
            raise _unsafe(error, path) from None
        except Exception as error:  # unpickling damaged bytes can raise anything
            is_worded = isinstance(error, ExcessError)
            what = str(error) if is_worded else printable(f"{type(error).__name__}: {error}")
            raise MetadataError(f"cannot be unpickled ({what}). {_DAMAGED}", path) from error
        fault = metadata_fault(metadata, is_torchs=not allow_globals)
    if fault is not None:
        raise MetadataError(f"{fault}. {_DAMAGED}", path)
    return metadata


def _unsafe(error: GlobalRefusedError, path: str) -> UnsafeMetadataError:
    shown = error.name[:_SHOWN_OF_NAME]
    if error.is_class and shown == error.name:
        what = (
            "which the metadata of torch's writers does not; nothing was executed. The file is"
            " damaged, a newer torch wrote it, or it was made to run code here. If your own writer"
            f" puts this class into it, allow it: allow_globals=({shown!r},) or"
            f" PARALOAD_ALLOW_GLOBALS={shown}"
        )
    elif error.is_new:
        what = (
            "which this version of torch does not have; nothing was executed. A newer torch wrote"
            " the file, or it is damaged"
        )
    else:
        what = (
            "which metadata never needs; nothing was executed. Do not trust this file: it is"
            " damaged, or it was made to run code here"
        )
    return UnsafeMetadataError(f"names {shown!r}, {what}", path, shown)
