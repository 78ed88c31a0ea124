"""Who gets an answer from ``watch --serve``, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.watch.test_watch import train
from tools.watch import serve
from tools.watch.command import page
from tools.watch.state import RunState
from uss.pipeline import PIPELINE


@pytest.fixture
def server(tmp_path: Path) -> Iterator[serve._Server]:
    """A server at work, over a run in training."""
    run = tmp_path / "run"
    train(run, 12)
    site = serve._Site(RunState(run, PIPELINE), page, 2.0, [], tmp_path / "report.html")
    with serve._Server(("127.0.0.1", 0), site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: serve._Server, path: str, host: str | None = None, cookie: str = ""
) -> http.client.HTTPResponse:
    """The answer to a request, whose body was read into ``text``."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    for value in [f"127.0.0.1:{port}"] if host is None else filter(None, host.split(",")):
        connection.putheader("Host", value)
    if cookie:
        connection.putheader("Cookie", cookie)
    connection.endheaders()
    answer = connection.getresponse()
    answer.text = answer.read().decode()  # type: ignore[attr-defined]
    connection.close()
    return answer


@pytest.mark.parametrize("path", ["/", "/state.json", "/report.html", "/none"])
def test_nobody_is_answered_without_the_token(server: serve._Server, path: str) -> None:
    token, name = server.token, server.cookie
    for query in ("", "?token=", f"?token={token[:-1]}", f"?token={token}x", "?token=%ff%C3%A9"):
        assert ask(server, path + query).status == 403
    for cookie in (f"{name}=", f"{name}={token[1:]}", f"other={token}", "\x01;;==", "é" * 9):
        answer = ask(server, path, cookie=cookie)
        assert answer.status == 403 and answer.headers["Set-Cookie"] is None
        assert token not in answer.text and "12/20" not in answer.text


def test_the_printed_address_opens_all_pages(server: serve._Server) -> None:
    path = "/" + server.address.partition(f":{server.server_address[1]}/")[2]
    answer = ask(server, path)
    assert answer.status == 200 and "12/20 steps" in answer.text
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    answer = ask(server, "/state.json", cookie=f"a=1; {cookie.partition(';')[0]}")
    assert answer.status == 200 and json.loads(answer.text)[0]["done"] == 12


def test_each_server_has_its_own_token(server: serve._Server) -> None:
    with serve._Server(("127.0.0.1", 0), server.site) as other:
        assert other.token != server.token and len(other.token) >= 32


def test_a_site_that_points_its_name_here_is_not_answered(server: serve._Server) -> None:
    port, path = server.server_address[1], f"/state.json?token={server.token}"
    for host in (f"localhost:{port}", f"[::1]:{port}", f"127.0.0.1:{port}"):
        assert ask(server, path, host).status == 200
    for host in (
        *(f"evil.example:{port}", f"localhost.evil.example:{port}", "localhost", "localhost:1"),
        *("", f"localhost:{port},evil.example", f"127.0.0.1:{port}@evil.example"),
    ):
        answer = ask(server, path, host)
        assert answer.status == 403 and f"localhost:{port}" in answer.text


def test_slow_clients_hold_nobody_up(server: serve._Server) -> None:
    """More than may ask at a time, each of which says a little and then nothing."""
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(serve._CLIENTS + 20):
            each = socket.create_connection(server.server_address[:2], timeout=60)
            stack.enter_context(each)
            each.sendall(b"GET / HTTP/1.1\r\nHost:")
            slow.append(each)
        begun = time.monotonic()
        assert ask(server, f"/?token={server.token}").status == 200
        assert time.monotonic() - begun < serve._CLIENT_S
        assert slow[0].recv(1) == b""  # it waited longest
        assert len(server._asking) <= serve._CLIENTS


def test_a_client_that_drips_is_cut_off(
    server: serve._Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then would begin a time limit of the socket anew."""
    monkeypatch.setattr(serve, "_CLIENT_S", 0.3)
    with socket.create_connection(server.server_address[:2], timeout=60) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(600):
                slow.sendall(b"a")
                time.sleep(0.1)
    assert not server._asking


def test_a_report_in_the_making_holds_nobody_up(
    server: serve._Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(command: list[str]) -> str:
        begun.set()
        assert go_on.wait(60)
        Path(command[command.index("--output") + 1]).write_text("the report")
        return ""

    monkeypatch.setattr(serve, "_complaint_of", make)
    answers: list[http.client.HTTPResponse] = []
    path = f"/report.html?token={server.token}"
    first = threading.Thread(target=lambda: answers.append(ask(server, path)))
    first.start()
    assert begun.wait(60)
    assert ask(server, f"/?token={server.token}").status == 200
    second = ask(server, path)
    assert second.status == 503 and "is being made" in second.text and second.headers["Refresh"]
    assert first.is_alive()
    go_on.set()
    first.join()
    assert [(each.status, each.text) for each in answers] == [(200, "the report")]
    assert ask(server, path).text == "the report"


def test_a_client_that_goes_leaves_no_traceback(
    server: serve._Server, capfd: pytest.CaptureFixture[str]
) -> None:
    for sent in (
        b"",
        b"GET",
        b"POST / HTTP/1.1\r\n\r\n",
        b"\xff\r\n\r\n",
        b"GET /" + b"a" * 70_000,
    ):
        with socket.create_connection(server.server_address[:2], timeout=60) as client:
            client.sendall(sent)
            # Without lingering, closing it is a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert ask(server, f"/?token={server.token}").status == 200
    assert capfd.readouterr().err == ""
