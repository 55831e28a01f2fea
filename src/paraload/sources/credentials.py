"""URLs: without credentials, for messages, and without slashes at the end of their path."""

import re


def without_credentials(url: str) -> str:
    """``url`` without its user, password and query, which may hold a signature.

    >>> without_credentials("https://me:secret@host/step-1000?sig=secret")
    'https://host/step-1000'
    >>> without_credentials("runs/ckpt#3")  # not a URL
    'runs/ckpt#3'
    """
    if "://" not in url:
        return url
    return re.sub(r"(?<=://)[^/]*@|[?#].*", "", url)


def without_last_slashes(url: str) -> str:
    """``url`` without slashes at the end of its path, which would make the keys below it wrong.

    >>> without_last_slashes("https://host/step-1000//?sig=a/")
    'https://host/step-1000?sig=a/'
    >>> without_last_slashes("file:///")
    'file:///'
    """
    return re.sub(r"^([^?#]*://[^?#]*[^/?#])/+(?=[?#]|$)", r"\1", url)
