"""Names of places without what grants access to them."""

import re


def without_credentials(url: str) -> str:
    """``url`` without its user, password and query, which may hold a signature.

    >>> without_credentials("https://me:secret@host/step-1000?sig=secret")
    'https://host/step-1000'
    """
    return re.sub(r"(?<=://)[^/]*@|[?#].*", "", url)
