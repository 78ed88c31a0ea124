"""``python -m NAME watch RUN --serve``: the live state and the report, in a browser here.

``/`` shows what the terminal shows and loads itself anew; ``/report.html`` is the page of
``python -m NAME report``, made when it is asked for and older than the run's last change.
"""

from __future__ import annotations

import contextlib
import html
import http.server
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from core import log
from core.errors import UserError
from core.pipeline.folders import PROJECT_ROOT
from tools.watch.state import RunState, StageState

STAGE = "watch"
_HOST = "127.0.0.1"
_REPORT_S = 1800
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>:root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui;margin:1.5em}}
pre{{font:14px/1.5 ui-monospace,monospace;overflow-x:auto}}</style>
<pre>{text}</pre><p><a href="report.html">report</a> (takes a while: it is made when you ask)</p>
</html>
"""


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

        class Handler(_Handler):
            pass

        Handler.site = site
        try:
            server = http.server.ThreadingHTTPServer((_HOST, port), Handler)
        except OSError as error:
            raise UserError(
                f"cannot serve on {_HOST}:{port}: {error.strerror}; choose another --port"
            ) from error
        with server:
            print(f"http://{_HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
            server.serve_forever()


class _Site:
    """What is shown, made by one request at a time."""

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
        self._lock = threading.Lock()

    def live(self) -> str:
        """The live state as a page."""
        with self._lock:
            root = self._state.run.root
            text = self._show(root, self._state.stages())
        return _PAGE.format(title=html.escape(root.name), text=html.escape(text))

    def state(self) -> str:
        """The live state as JSON."""
        with self._lock:
            return json.dumps([asdict(stage) for stage in self._state.stages()])

    def report(self) -> tuple[int, str]:
        """(status, page) of the report, made anew where the run has gone on."""
        with self._lock:
            stages = self._state.stages()
            now = json.dumps([(each.name, each.state, each.done) for each in stages])
            if now != self._made_of or not self._report.is_file():
                command = [sys.executable, "-m", self._state.pipeline.name, "report"]
                command += [
                    str(self._state.run.root),
                    "--output",
                    str(self._report),
                    *self._arguments,
                ]
                said = _complaint_of(command)
                if said:
                    text = f"the report could not be made: {html.escape(said)}"
                    return 500, _PAGE.format(title="report", text=text)
                self._made_of = now
            return 200, self._report.read_text(encoding="utf-8")


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


class _Handler(http.server.BaseHTTPRequestHandler):
    site: _Site

    def do_GET(self) -> None:
        """Answer one request."""
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, self.site.live(), "text/html", refresh=True)
        elif path == "/state.json":
            self._answer(200, self.site.state(), "application/json")
        elif path == "/report.html":
            self._answer(*self.site.report(), "text/html")
        else:
            self._answer(404, "not here; / shows the run\n", "text/plain")

    def _answer(self, status: int, text: str, kind: str, refresh: bool = False) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if refresh:
            self.send_header("Refresh", f"{max(self.site.interval, 1):.0f}")
        with contextlib.suppress(ConnectionError):  # the browser has gone on
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Only what failed is worth a line."""

    def log_error(self, format: str, *arguments: object) -> None:
        log.warn(STAGE, format % arguments)
