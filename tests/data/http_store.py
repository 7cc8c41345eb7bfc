"""A folder behind a real HTTP server with byte ranges and ETags, which can be told to fail as real ones do."""

import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Request(NamedTuple):
    """What was asked for; `first` and `end` delimit the range of bytes, None where the whole file was wanted."""

    method: str
    name: str
    first: int | None
    end: int | None


@dataclass
class HttpStore:
    """`fault(request)` says how a request fails: "503", "404", "reset", "cut" (half of the body, then the connection
    ends), "stall" (nothing comes), "whole" (the range is ignored), or None. `token`: a query without it gets 403."""

    folder: Path
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[Request], str | None] = lambda request: None
    token: str = ""
    port: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reads(self, name: str) -> list[Request]:
        """The requests for bytes of a file."""
        return [request for request in self.requests if (request.method, request.name) == ("GET", name)]

    def first_times(self, kind: str, times: int, name_ends: str = ".tar") -> None:
        """The first requests for bytes of each range fail."""
        seen: dict[Request, int] = {}

        def fault(request: Request) -> str | None:
            seen[request] = seen.get(request, 0) + 1
            wanted = request.method == "GET" and request.name.endswith(name_ends)
            return kind if wanted and seen[request] <= times else None

        self.fault = fault


@contextmanager
def serve(folder: Path) -> Iterator[HttpStore]:
    store = HttpStore(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    store.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        store.stalled.set()
        server.shutdown()
        server.server_close()


def _handler(store: HttpStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            url = urlsplit(self.path)
            first, end = self._range()
            request = Request(self.command, unquote(url.path).lstrip("/"), first, end)
            store.requests.append(request)
            kind = store.fault(request)
            path = store.folder / request.name
            if kind == "stall":
                store.stalled.wait(30)
            if kind in ("reset", "stall"):
                self._reset()
            elif kind == "503":
                self._send(503, b"come back later")
            elif store.token not in url.query:
                self._send(403, b"")
            elif kind == "404" or not path.is_file():
                self._send(404, b"")
            else:
                self._send_file(path.read_bytes(), request, kind)

        def _send_file(self, content: bytes, request: Request, kind: str | None) -> None:
            etag = hashlib.sha256(content).hexdigest()
            if request.first is None or request.end is None or kind == "whole":
                self._send(200, content, etag=etag)
                return
            part = content[request.first : request.end]
            self._send(206, part, etag=etag, cut=kind == "cut")

        def _range(self) -> tuple[int | None, int | None]:
            value = self.headers.get("Range")
            if value is None:
                return None, None
            first, last = value.removeprefix("bytes=").split("-")
            return int(first), int(last) + 1

        def _send(self, status: int, body: bytes, etag: str = "", cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def finish(self) -> None:
            """A connection that was reset has nothing to flush."""
            with suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *args: object) -> None:
            pass

    return Handler
