"""The page, live during a sweep: served on this machine only, built anew when records change."""

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
from slimexp.page.content import content, nothing
from slimexp.page.html import embedded, render
from slimexp.record.record import files

HOST = "127.0.0.1"
PORTS = range(65536)
CLIENTS = 32  # at once; a browser opens six
SILENCE = 10  # seconds without a byte from or to a client
SECONDS = 60  # that a request and its answer may take in all


class Snapshot(NamedTuple):
    """A page of one moment.

    Attributes:
        page: HTML.
        data: Its content as JSON.
        version: Differs where the content does.
    """

    page: bytes
    data: bytes
    version: str


class LivePage:
    """The page of ``runs``, built anew when a record file, or that of published points, has come, changed or gone.

    Args:
        runs: A folder, or one record file.
        look: Gives the sections of the records there.
        reference: The file of published points, if there is one.
    """

    def __init__(self, runs: Path, look: Callable[[], list[Section]], reference: Path | None) -> None:
        self.runs, self.look, self.reference = runs, look, reference
        self._stamp: list[tuple[str, int, int]] | None = None
        self._snapshot = Snapshot(b"", b"", "")
        self._lock = Lock()

    def snapshot(self) -> Snapshot:
        """The page as of now."""
        with self._lock:
            if (stamp := self._stamps()) != self._stamp:
                self._stamp, self._snapshot = stamp, self._built()
            return self._snapshot

    def _built(self) -> Snapshot:
        try:
            shown = content(self.look(), self.runs, None)
        except (ValueError, OSError) as error:  # no record yet, or the folder has just gone
            shown = nothing(str(error))
        data = embedded(shown).encode()
        version = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        return Snapshot(render({**shown, "version": version}).encode(), data, version)

    def _stamps(self) -> list[tuple[str, int, int]]:
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever reads the records tells of folders that cannot be read
            read = files(self.runs)
        for path in [*read, self.reference] if self.reference else read:
            with suppress(OSError):  # gone since
                state = path.stat()
                found.append((str(path), state.st_mtime_ns, state.st_size))
        return found


class Server(socketserver.ThreadingTCPServer):
    """Answers ``/`` and ``/data.json`` to this machine.

    Raises:
        ValueError: The port is taken, or only for the system's own use.
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
        """A thread for each client, of whom there may be ``CLIENTS``; one more is sent away."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(1)
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and end the connection when its time is over, whatever it is doing."""
        end = Timer(SECONDS, _cut, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that went away amid an answer, or is too slow for it, is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """Where to look."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "slimexp"
    timeout = SILENCE

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        hosts = self.headers.get_all("Host")
        if hosts not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):  # a page elsewhere that renamed us
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
        """A request every two seconds is no news."""


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)


def watch(runs: Path, look: Callable[[], list[Section]], *, reference: Path | None, port: int) -> None:
    """Serve the page until Ctrl-C, or until what stops a program otherwise.

    Args:
        runs: As ``LivePage``; so are ``look`` and ``reference``.
        look: Gives the sections.
        reference: A file of published points.
        port: 0 for any that is free.

    Raises:
        FileNotFoundError: ``runs`` does not exist.
        ValueError: The port cannot be had.
    """
    if not runs.exists():
        raise FileNotFoundError(f"no file or folder {runs}")
    with Server(LivePage(runs, look, reference), port) as server:
        try:
            print(f"live at {server.address} until Ctrl-C", flush=True)
            server.serve_forever()
        except KeyboardInterrupt as stop:
            print()
            if isinstance(stop, Terminated):
                raise
