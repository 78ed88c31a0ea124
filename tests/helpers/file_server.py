"""A server of one file on this machine, which breaks as a test asks for."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """A running server of ``content``."""
    with FileServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class FileServer(http.server.ThreadingHTTPServer):
    """Serves ``content`` at ``path``; what goes wrong is set by the test."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str | None] = []  # the ranges
        self.cuts: list[int] = []  # after how many bytes the next connections break
        self.ranges = True
        self.content = content
        self.path = "/file"

    def handle_error(self, *_arguments: object) -> None:
        """Nothing on the terminal: a client may leave."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        if self.path != self.server.path:
            self.send_error(404)
            return
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        content, begin = self.server.content, 0
        if asked and self.server.ranges:
            begin = int(asked[len("bytes=") : -1])
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = len(content)
        if self.server.cuts:
            end = begin + self.server.cuts.pop(0)
        self.wfile.write(content[begin:end])

    def log_message(self, *_arguments: object) -> None:
        """Nothing on the terminal."""
