"""The page during a sweep: served to this machine only, and built again when records change."""

import errno
import hashlib
import socket
import socketserver
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import BoundedSemaphore, Lock, Timer
from typing import Any, NamedTuple

from slimexp.analysis.section import Section
from slimexp.host.console import Terminated
from slimexp.page import search
from slimexp.page.content import content, nothing
from slimexp.page.html import embedded, render
from slimexp.record.record import files

HOST = "127.0.0.1"
PORTS = range(65536)
CLIENTS = 32  # connections at once; a browser opens six
SILENCE = 10  # seconds without a byte from or to a client
SECONDS = 60  # for a request and its answer in all


class Snapshot(NamedTuple):
    """The page at one moment.

    Attributes:
        page: HTML of the page.
        data: Content of the page, as JSON.
        version: Entity tag, which differs where the content does.
    """

    page: bytes
    data: bytes
    version: str


class LivePage:
    """The page of ``runs``, built again when a file of records, searches or published points changes.

    Args:
        runs: A folder, or one record file.
        read: Reads the sections of the records there.
        reference: The file of published points, if there is one.
    """

    def __init__(self, runs: Path, read: Callable[[], list[Section]], reference: Path | None) -> None:
        self.runs, self.read, self.reference = runs, read, reference
        self._stamp: list[tuple[str, int, int]] | None = None
        self._snapshot = Snapshot(b"", b"", "")
        self._lock = Lock()

    def snapshot(self) -> Snapshot:
        """The page as of now, which is built if its files have changed."""
        with self._lock:
            if (stamp := self._stamps()) != self._stamp:
                self._stamp, self._snapshot = stamp, self._built()
            return self._snapshot

    def _built(self) -> Snapshot:
        try:
            shown = content(self.read(), self.runs, None)
        except (ValueError, OSError) as error:  # no record yet, or the folder has just gone
            shown = nothing(str(error))
        data = embedded(shown).encode()
        version = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        return Snapshot(render({**shown, "version": version}).encode(), data, version)

    def _stamps(self) -> list[tuple[str, int, int]]:
        stamps = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reading the records warns of folders that cannot be read
            paths = files(self.runs)
        paths += [*search.files(self.runs), *([self.reference] if self.reference else [])]
        for path in paths:
            with suppress(OSError):  # gone since
                state = path.stat()
                stamps.append((str(path), state.st_mtime_ns, state.st_size))
        return stamps


class Server(socketserver.ThreadingTCPServer):
    """Server of ``/`` and ``/data.json`` to this machine.

    Args:
        live: The page.
        port: Port to listen on; 0 for any that is free.

    Raises:
        ValueError: The port is in use, or reserved for the system.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, live: LivePage, port: int) -> None:
        self.live = live
        self._free = BoundedSemaphore(CLIENTS)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "in use" if error.errno == errno.EADDRINUSE else "reserved for the system"
            raise ValueError(f"port {port} is {why}: leave out --port to get a free one, or name another") from error

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client; beyond ``CLIENTS`` of them it is refused instead."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(1)
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client, whose connection ends after ``SECONDS`` at the latest."""
        end = Timer(SECONDS, _cut, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Report an error, unless the client went away during the answer or was too slow for it."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "slimexp"
    timeout = SILENCE

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        hosts = self.headers.get_all("Host")
        # against DNS rebinding: a page of another site may resolve its name to this machine
        if hosts not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        live, path = self.server.live.snapshot(), self.path.partition("?")[0]
        if path == "/":
            self._answer(live.page, "text/html; charset=utf-8", live.version)
        elif path == "/data.json" and self.headers.get("If-None-Match") == live.version:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.end_headers()
        elif path == "/data.json":
            self._answer(live.data, "application/json", live.version)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _answer(self, body: bytes, kind: str, version: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "ETag": version,
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because the page asks for its data every two seconds."""


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)


def watch(runs: Path, read: Callable[[], list[Section]], *, reference: Path | None, port: int) -> None:
    """Serve the page until Ctrl-C or a signal to terminate.

    Args:
        runs: A folder, or one record file.
        read: Reads the sections of the records there.
        reference: The file of published points, if there is one.
        port: Port to listen on; 0 for any that is free.

    Raises:
        FileNotFoundError: ``runs`` does not exist.
        ValueError: The port is in use, or reserved for the system.
    """
    if not runs.exists():
        raise FileNotFoundError(f"no file or folder {runs}")
    with Server(LivePage(runs, read, reference), port) as server:
        try:
            print(f"live at {server.address} until Ctrl-C", flush=True)
            server.serve_forever()
        except KeyboardInterrupt as stop:
            print()
            if isinstance(stop, Terminated):
                raise
