"""Removes credentials from URLs, for messages."""

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
