"""Byte ranges of files, on this machine or behind a URL, read with patience.

Paths are opened directly. URLs go through fsspec (s3://, gs://, http(s)://, …) with one range request per read, no
cache (`trainer.data.cache` adds one), and a second request for the object's size and ETag: fsspec hands on neither the
status nor the headers of a range request. The size is compared with the index's, the ETag with what this process saw
first. So an object that was rewritten in the same size before this process first read it passes here; tar headers out
of place may tell, and `python -m data_tools verify`, which compares sha256, does.

Credentials, endpoints and the like are given as the libraries behind fsspec want them: for S3 in AWS's environment
variables (AWS_ENDPOINT_URL for a store that is not Amazon's) or ~/.aws, for any of them in fsspec's own configuration
(~/.config/fsspec/*.json, FSSPEC_S3_ENDPOINT_URL=…). None of it is printed or saved.

What may pass (timeouts, server errors, resets, short bodies, a stale NFS handle) is tried again, with delays that
double and vary, a bounded number of times. What will not pass (no such file, no permission) is an error at once."""

import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.data.errors import ShardError
from trainer.data.urls import local_path, redact, scheme_of
from trainer.errors import BadInput

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FIRST_DELAY, LONGEST_DELAY = 0.25, 30.0  # seconds between attempts
_WARN_AT = 3  # the attempt whose failure is told: one or two are every day's business of an object store
_RETRY_STATUS = (408, 425, 429)  # of the 4xx, those that ask to come again
_PERMANENT = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError,
    AttributeError, LookupError,
)  # fmt: skip
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


@dataclass(frozen=True)
class FileFacts:
    """Bytes in a file, and what changes when it is rewritten (an ETag), each None where nothing says so."""

    size: int | None
    version: str | None


class Storage:
    """Reads for one process; may be used by several threads. Make it in the process that uses it, after any fork.

    An attempt to read a range behind a URL is two requests of at most `timeout` seconds each, so the operation takes at
    most (retries + 1) · 2 · timeout seconds plus the delays (about a minute for 8 retries). Only fsspec's asynchronous
    filesystems (s3, gs, http, abfs) keep to `timeout`; others, and files on this machine, take as long as they take."""

    def __init__(self, retries: int = 8, timeout: float = 60.0) -> None:
        self._retries = retries
        self._timeout = timeout
        self._jitter = random.Random()
        self._filesystems: dict[str, Any] = {}
        self._versions: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Makes threads that wait to try again give up."""
        self._closed.set()

    def facts(self, location: str) -> FileFacts:
        """Size and version of a file. Raises ShardError if it cannot be had, BadInput if a package is missing."""
        return self._patiently(lambda: self._facts(location), location)

    def read_file(self, location: str) -> bytes:
        """A small file's whole content. Raises as `facts` does."""
        return self._patiently(lambda: self._content(location, None, None), location)

    def version(self, location: str) -> str | None:
        """Version of the file that ranges are being read from (empty if it has none); None before the first."""
        return self._versions[location] or "" if location in self._versions else None

    def read_range(self, location: str, start: int, end: int, size: int, digest: str = "") -> bytes:
        """Bytes start … end - 1 of a shard that has `size` bytes according to its index. `digest`: the shard's sha256
        there, by which a cache may know it; nothing is compared with it.

        Raises ShardError naming the shard and the range if they cannot be had, or if the shard has another size by now
        or another ETag than when this object first read it."""
        where = f"shard {redact(location)}, bytes {start}-{end}"

        def attempt() -> tuple[bytes, FileFacts]:
            content = self._content(location, start, end)
            facts = self._facts(location)
            if len(content) < end - start and facts.size in (size, None):
                raise OSError(f"{len(content)} of {end - start} bytes came")
            return content, facts

        content, facts = self._patiently(attempt, location, where)
        if facts.size not in (size, None):
            what = "is truncated" if facts.size < size else "was rewritten"
            raise ShardError(
                f"{where}: the shard {what}: {facts.size} bytes where the index says {size}; copy it again, or write "
                "the index anew"
            )
        if self._versions.setdefault(location, facts.version) != facts.version:
            raise ShardError(
                f"{where}: the shard was rewritten during the run (its ETag changed); write the index anew"
            )
        if len(content) != end - start:
            raise ShardError(
                f"{where}: the server sent {len(content)} bytes: it does not serve byte ranges; use another"
            )
        return content

    def _content(self, location: str, start: int | None, end: int | None) -> bytes:
        if scheme_of(location) is None:
            with open(local_path(location), "rb") as file:
                file.seek(start or 0)
                return file.read(-1 if end is None else end - (start or 0))
        filesystem = self._filesystem(location)
        return bytes(filesystem.cat_file(location, start=start, end=end, **self._limit(filesystem)))

    def _facts(self, location: str) -> FileFacts:
        if scheme_of(location) is None:
            with open(local_path(location), "rb") as file:  # more than a stat says: it may be read
                return FileFacts(os.fstat(file.fileno()).st_size, None)
        filesystem = self._filesystem(location)
        info = filesystem.info(location, **self._limit(filesystem))
        version = info.get("ETag") or info.get("etag")
        # One server of several may send the weak form: the same object all the same.
        return FileFacts(info.get("size"), version.removeprefix("W/") if version else None)

    def _limit(self, filesystem: Any) -> dict[str, float]:
        """fsspec's asynchronous filesystems take a time limit for a whole call; the others know no such thing."""
        return {"timeout": self._timeout} if filesystem.async_impl else {}

    def _filesystem(self, location: str) -> Any:
        import fsspec  # a quarter of a second, which local files need not wait for

        scheme = scheme_of(location)
        host = "/".join(location.split("/")[:3])
        with self._lock:
            if host not in self._filesystems:
                try:
                    filesystem, _ = fsspec.url_to_fs(location, use_listings_cache=False)
                except ImportError as error:
                    package = f"'localmim-freeze[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else "what it names"
                    raise BadInput(f"{redact(location)} needs a package ({error}): pip install {package}") from error
                except ValueError as error:
                    raise BadInput(
                        f"{redact(location)}: {error}; shards are read from paths and fsspec URLs"
                    ) from error
                if hasattr(filesystem, "set_session"):  # here, lest several threads make one each
                    fsspec.asyn.sync(filesystem.loop, filesystem.set_session, timeout=self._timeout)
                self._filesystems[host] = filesystem
            return self._filesystems[host]

    def _patiently(self, action: Callable[[], Result], location: str, where: str | None = None) -> Result:
        where = where or redact(location)
        attempt = 0
        while True:
            attempt += 1
            try:
                return action()
            except BadInput:
                raise
            except Exception as error:
                if not is_transient(error):
                    raise ShardError(f"{where} cannot be read: {_cause(error)}") from error
                if attempt > self._retries:
                    raise ShardError(f"{where} cannot be read: {_cause(error)} ({attempt} attempts)") from error
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1)) * self._jitter.uniform(0.5, 1.0)
                if attempt == _WARN_AT:
                    log.warning("%s: %s; trying again (%d of %d)", where, _cause(error), attempt, self._retries)
            if self._closed.wait(delay):
                raise ShardError(f"{where} was not read: the loader closed")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later. An HTTP status decides where there is one, else the type."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return is_transient(error.__cause__)  # fsspec's http says "not found" whatever has failed
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in _RETRY_STATUS
    return not isinstance(error, _PERMANENT) and "Credentials" not in type(error).__name__


def _http_status(error: BaseException | None) -> int | None:
    """The status in an exception of aiohttp (`status`), gcsfs (`code`) or botocore (`response`)."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _cause(error: BaseException) -> str:
    """An exception in one line for people: the system's words, or the library's with their type."""
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        return "No such file" if cause is None or _http_status(cause) == 404 else _cause(cause)
    if isinstance(error, OSError) and error.strerror:
        return " ".join(redact(error.strerror).split())
    text = redact(" ".join(str(error).split()))[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
