"""URLs: without credentials, for messages, and without slashes at the end of their path."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from paraload.errors import InvalidOptionError

_USER: Final = r"[^/?#]*@"
#: A password with a raw "/", "?" or "#". A colon may also begin a port, or the "::" of fsspec.
_UNQUOTED_USER: Final = r"(?!\[)[^/?#:]*:(?!\d+(?:[/?#]|$)|:\w+:)(?:[^?#]*@|.*@)"
_NOT_SHOWN: Final = re.compile(rf"(?<=://)(?:{_USER}|{_UNQUOTED_USER})|[?#].*")


def without_credentials(url: str) -> str:
    """``url`` without its user, password and query, which may hold a signature.

    >>> without_credentials("https://me:secret@host/step-1000?sig=secret")
    'https://host/step-1000'
    >>> without_credentials("https://me:sec/r?et@host:80/x")  # characters that need quoting
    'https://host:80/x'
    >>> without_credentials("https://me:secret@host/path@v2?user=a@secret")
    'https://host/path@v2'
    >>> without_credentials("http://host:80/path@v2"), without_credentials("s3://bucket/a@b:c")
    ('http://host:80/path@v2', 's3://bucket/a@b:c')
    >>> without_credentials("http://[::1]/a@b"), without_credentials("zip://x::s3://b/a@b")
    ('http://[::1]/a@b', 'zip://x::s3://b/a@b')
    >>> without_credentials("runs/ckpt#3")  # not a URL
    'runs/ckpt#3'
    """
    if "://" not in url:
        return url
    return _NOT_SHOWN.sub("", url)


def split_url(url: str) -> SplitResult:
    """The parts of ``url``, or an error without credentials, which those of Python may show.

    >>> split_url("http://me:secret@[bad/x")
    Traceback (most recent call last):
    paraload.errors.InvalidOptionError: http://[bad/x: not a valid URL
    """
    try:
        return urlsplit(url)
    except ValueError:
        raise InvalidOptionError(f"{without_credentials(url)}: not a valid URL") from None


def without_last_slashes(url: str) -> str:
    """``url`` without slashes at the end of its path, which would make the keys below it wrong.

    >>> without_last_slashes("https://host/step-1000//?sig=a/")
    'https://host/step-1000?sig=a/'
    >>> without_last_slashes("file:///")
    'file:///'
    """
    return re.sub(r"^([^?#]*://[^?#]*[^/?#])/+(?=[?#]|$)", r"\1", url)
