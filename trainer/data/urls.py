"""Places of shards that may be URLs: told from paths, joined, and shown without the secrets in them.

Standard library only: the command-line tools import this without waiting for anything."""

import re
from pathlib import Path
from urllib.parse import quote

PIPE = "pipe:"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://?)(?:[^\s/?'\"]*@)?([^\s?'\"]*)(\?[^\s'\"]*)?")
"""One slash is enough: so `pathlib` writes a URL that was given in place of a path."""


def scheme_of(location: str) -> str | None:
    """`s3` of `s3://bucket/key`; None for a path on this machine, `file:` URLs included."""
    match = _SCHEME.match(location)
    return None if match is None or match[1].lower() == "file" else match[1].lower()


def local_path(location: str | Path) -> Path:
    """A path on this machine, taken literally: `#`, `?` and `%` mean nothing in it, nor in a `file:` URL."""
    text = str(location)
    for prefix in ("file://", "file:"):
        if text.lower().startswith(prefix):
            return Path(text[len(prefix) :])
    return Path(text)


def join_url(folder: str, name: str) -> str:
    """The URL of a file in a folder. In http(s) URLs the name goes before the query, which may be the folder's
    signature, and is percent-encoded."""
    if scheme_of(folder) not in ("http", "https"):
        return f"{folder.rstrip('/')}/{name}"
    path, question, query = folder.partition("?")
    return f"{path.rstrip('/')}/{quote(name)}{question}{query}"


def redact(text: str) -> str:
    """The text with passwords and queries (signatures, tokens) cut out of every URL in it."""
    return _URL.sub(lambda match: match[1] + match[2] + ("?…" if match[3] else ""), text)
