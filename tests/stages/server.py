"""A server on this machine for the tests of downloads: files or a folder, with faults on demand."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

PAUSED = threading.Event()
"""Never set: time.sleep is what the tests replace."""


class Fault(NamedTuple):
    """What is wrong with one answer."""

    status: int | None = None
    """Answered in place of the file."""
    headers: dict = {}  # noqa: RUF012
    """Said beside, or in place of, the others."""
    cut: int | None = None
    """Bytes sent before the connection ends."""
    body: bytes | None = None
    """Sent in place of the file, with status 200 unless one is given."""
    pause: float = 0
    """Seconds before the answer."""
    shift: int = 0
    """Bytes by which a range begins too late."""
    most: int | None = None
    """Bytes of a range at the most."""
    longer: int = 0
    """Bytes announced that never come."""


class Server(ThreadingHTTPServer):
    """Serves `files` and what is in `folder`; `faults` are taken one per request, `choose_fault` may make more."""

    daemon_threads = True

    def __init__(self, folder: Path | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.folder = folder
        self.faults: list[Fault] = []
        self.choose_fault: Callable[[str], Fault | None] = lambda _: None
        self.ranges = True
        self.heeds_if_range = True
        self.date: str | None = None
        """Last-Modified, said in place of the ETag."""
        self.requests: list[tuple[str, str | None, int]] = []
        """Path, range asked for, status."""
        self.bytes_sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def read(self, path: str) -> bytes | None:
        if path in self.files:
            return self.files[path]
        file = self.folder / unquote(urlparse(path).path).strip("/") if self.folder else None
        return file.read_bytes() if file and file.is_file() else None

    def headers(self, path: str) -> dict[str, str]:
        """What an answer says beside the length and the ETag."""
        return {}

    def handle_error(self, request, client_address):
        """A client that was killed is no fault of the server."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self._answer(send=False)

    def do_GET(self):
        self._answer(send=True)

    def _answer(self, send: bool):
        server = self.server
        fault = server.faults.pop(0) if server.faults else server.choose_fault(self.path) or Fault()
        if fault.pause:
            PAUSED.wait(fault.pause)
        asked, data = self.headers["Range"], server.read(self.path)
        if self.path == "/moved":
            return self._head(302, asked, Location=f"{server.url}/em/raw.bin")
        if fault.status or (data is None and fault.body is None):
            self._head(fault.status or 404, asked, **{**server.headers(self.path), **fault.headers})
            return self.wfile.write(fault.body or b"")
        data = data if fault.body is None else fault.body
        mark = server.date or f'"{hashlib.md5(data).hexdigest()}"'
        other = server.heeds_if_range and self.headers["If-Range"] not in (None, mark)
        whole = not asked or not server.ranges or other
        start, end = (0, len(data)) if whole else _range(asked, len(data))
        end = end if whole or fault.most is None else min(end, start + fault.most)
        start += fault.shift
        body, told = data[start:end], {} if whole else {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        told |= {"Content-Length": len(body) + fault.longer, "Last-Modified" if server.date else "ETag": mark}
        told |= {**server.headers(self.path), **fault.headers}
        self._head(200 if whole else 206, asked, **told)
        if send:
            body = body if fault.cut is None else body[: fault.cut]
            server.bytes_sent += len(body)
            self.wfile.write(body)

    def _head(self, status, asked, **headers):
        self.server.requests.append((self.path, asked, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_args):
        pass


def _range(asked: str, length: int) -> tuple[int, int]:
    """First byte, and one past the last, of `bytes=3-7`, `bytes=3-` or `bytes=-5`."""
    first, _, last = asked[6:].partition("-")
    if not first:
        return length - int(last), length
    return int(first), min(int(last or length) + 1, length)


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator:
    """The server while it answers in a thread."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
