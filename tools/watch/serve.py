"""``python -m NAME watch RUN --serve``: the live state and the report, in a browser here.

``/`` shows what the terminal shows and loads itself anew; ``/report.html`` is the page of
``python -m NAME report``, made when it is asked for and older than the run's last change.

Other users of this machine, and pages of other sites in the user's browser, can reach the port too.
So a request must name this server as its host, which a site that makes its own name point here
cannot, and bring the token of the printed address, or the cookie that came in exchange for it.
Who sends no request, or does not take the answer, is cut off.
"""

from __future__ import annotations

import contextlib
import hmac
import html
import http.client
import http.cookies
import http.server
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from core.errors import UserError
from core.pipeline.folders import PROJECT_ROOT
from tools.watch.state import RunState, StageState, as_json

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost", "[::1]")  # of this machine, in a request's Host
_REPORT_S = 1800
_CLIENT_S = 10.0  # in which a client must send its request, and again take the answer
_CLIENTS = 32  # that may be sending a request at a time
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>:root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui;margin:1.5em}}
pre{{font:14px/1.5 ui-monospace,monospace;overflow-x:auto}}</style>
<pre>{text}</pre><p><a href="report.html">report</a> (takes a while: it is made when you ask)</p>
</html>
"""
_BEING_MADE = "the report is being made; this page loads itself anew until it is there"


def serve(
    state: RunState,
    show: Callable[[Path, list[StageState]], str],
    port: int,
    interval: float,
    report_arguments: list[str],
) -> None:
    """Answer browsers until Ctrl-C.

    Args:
        show: (run, stages) -> the text of the page.
        port: 0 takes any free one; the address is printed.
        interval: seconds after which the page loads itself anew.
        report_arguments: further arguments of ``python -m NAME report``.

    Raises:
        UserError: the port is taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        site = _Site(state, show, interval, report_arguments, Path(folder, "report.html"))

        try:
            server = _Server((_HOST, port), site)
        except OSError as error:
            raise UserError(
                f"cannot serve on {_HOST}:{port}: {error.strerror}; choose another --port"
            ) from error
        with server:
            print(f"{server.address} (Ctrl-C ends it)", flush=True)
            server.serve_forever()


class _Site:
    """What is shown. One request at a time reads the run, and one at a time has a report made."""

    def __init__(
        self,
        state: RunState,
        show: Callable[[Path, list[StageState]], str],
        interval: float,
        report_arguments: list[str],
        report: Path,
    ) -> None:
        self.interval = interval
        self._state, self._show = state, show
        self._arguments, self._report = report_arguments, report
        self._made_of = ""
        self._reading, self._making = threading.Lock(), threading.Lock()

    def live(self) -> str:
        """The live state as a page."""
        root = self._state.run.root
        text = self._show(root, self._stages())
        return _PAGE.format(title=html.escape(root.name), text=html.escape(text))

    def state(self) -> str:
        """The live state as JSON."""
        return as_json(self._stages())

    def report(self) -> tuple[int, str]:
        """(status, page) of the report, made anew where the run has gone on; 503 while another
        request has it made.
        """
        if not self._making.acquire(blocking=False):
            return 503, _PAGE.format(title="report", text=_BEING_MADE)
        try:
            now = json.dumps([(each.name, each.state, each.done) for each in self._stages()])
            if now != self._made_of or not self._report.is_file():
                said = self._make()
                if said:
                    text = f"the report could not be made: {html.escape(said)}"
                    return 500, _PAGE.format(title="report", text=text)
                self._made_of = now
            return 200, self._report.read_text(encoding="utf-8")
        finally:
            self._making.release()

    def _stages(self) -> list[StageState]:
        with self._reading:
            return self._state.stages()

    def _make(self) -> str:
        """Make the report; "", or why it could not be made."""
        command = [sys.executable, "-m", self._state.pipeline.name, "report"]
        command += [str(self._state.run.root), "--output", str(self._report), *self._arguments]
        return _complaint_of(command)


def _complaint_of(command: list[str]) -> str:
    """Run a command; "", or the last line of what it says about why it failed."""
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=_REPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it was not finished after {_REPORT_S} s"
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""


class _Server(http.server.ThreadingHTTPServer):
    """Answers whom the token was given to. A client that is slow to say what it wants holds nobody
    up: it has a time, and of too many such clients the one that waited longest goes.
    """

    def __init__(self, address: tuple[str, int], site: _Site) -> None:
        self._asking: dict[Any, float] = {}  # connection without request yet -> since when
        self._lock = threading.Lock()
        super().__init__(address, _Handler)
        self.site, self.token = site, secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_address[1]}" for name in _NAMES}
        if self.server_address[1] == http.client.HTTP_PORT:  # which browsers leave out
            self.hosts.update(_NAMES)
        # Cookies are of a host, whatever the port: each server has a name of its own.
        self.cookie = f"watch_{self.server_address[1]}"

    @property
    def address(self) -> str:
        """What the user opens."""
        return f"http://{_HOST}:{self.server_address[1]}/?token={self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a new thread answer a client."""
        with self._lock:
            if len(self._asking) >= _CLIENTS:
                self._cut(next(iter(self._asking)))
            self._asking[request] = time.monotonic()
        super().process_request(request, client_address)

    def has_asked(self, request: Any) -> None:
        """A client's request is here, or its connection has ended."""
        with self._lock:
            self._asking.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self.has_asked(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: end the connections that took too long."""
        latest = time.monotonic() - _CLIENT_S
        with self._lock:
            for request in [each for each, since in self._asking.items() if since < latest]:
                self._cut(request)

    def _cut(self, request: Any) -> None:
        """Let the thread of a connection read its end."""
        del self._asking[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_S

    def do_GET(self) -> None:
        """Answer one request."""
        self.server.has_asked(self.request)
        path, _, query = self.path.partition("?")
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            hosts = " or ".join(sorted(self.server.hosts))
            self._answer(403, f"this server is {hosts}, on both ends of a tunnel\n", "text/plain")
        elif not self._brings_token(query):
            self._answer(403, "open the address that watch --serve has printed\n", "text/plain")
        elif path == "/":
            self._answer(200, self.server.site.live(), "text/html")
        elif path == "/state.json":
            self._answer(200, self.server.site.state(), "application/json")
        elif path == "/report.html":
            self._answer(*self.server.site.report(), "text/html")
        else:
            self._answer(404, "not here; / shows the run\n", "text/plain")

    def _brings_token(self, query: str) -> bool:
        """Whether the address or the cookie holds the token."""
        given = parse_qs(query).get("token", [])
        with contextlib.suppress(http.cookies.CookieError):
            cookies = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
            if self.server.cookie in cookies:
                given.append(cookies[self.server.cookie].value)
        token = self.server.token.encode()
        return any([hmac.compare_digest(text.encode(errors="replace"), token) for text in given])

    def _answer(self, status: int, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")  # the address holds the token
        if status != 403:
            cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict"
            self.send_header("Set-Cookie", cookie)
        if status == 503 or (status == 200 and self.path.partition("?")[0] == "/"):
            self.send_header("Refresh", f"{max(self.server.site.interval, 1):.0f}")
        with contextlib.suppress(ConnectionError, TimeoutError):  # the browser has gone on
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: whoever reaches the port could fill the terminal."""
