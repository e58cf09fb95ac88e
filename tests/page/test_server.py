"""The live page: to this machine only, anew when records change, one clear error, a quiet end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread

import pytest

from slimexp.analysis.section import load
from slimexp.page import server
from slimexp.page.server import HOST, LivePage, Server
from slimexp.record import record
from slimexp.record.record import append, read
from slimexp.report import main

pytestmark = pytest.mark.fast


def get(server: Server, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def test_page_and_data_are_served_and_data_only_when_changed(runs: Path, served: Server) -> None:
    page, body = get(served, "/")
    assert page.status == 200 and b"<title>slimexp" in body and b"connect-src 'self'" in body
    data, body = get(served, "/data.json")
    version = data.headers["ETag"]
    assert len(json.loads(body)["sections"][0]["points"]) == 7
    assert get(served, "/data.json", If_None_Match=version)[0].status == 304
    new = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(new, key="q6", config={**new.config, "pipeline": {"quantize": {"key": 6}}}))
    data, body = get(served, "/data.json", If_None_Match=version)
    assert data.status == 200 and len(json.loads(body)["sections"][0]["points"]) == 8


def test_nothing_else_is_served_and_to_no_other_name(served: Server) -> None:
    for path in ("/records.jsonl", "/../records.jsonl", "//etc/passwd", "/page.js"):
        assert get(served, path)[0].status == 404
    reply, body = get(served, "/data.json", Host="evil.example")
    assert reply.status == 403 and b"sections" not in body


def test_published_points_that_change_are_taken_up(runs: Path, tmp_path: Path) -> None:
    reference = tmp_path / "published.csv"
    reference.write_text("label,cer,disk_mb\nElsewhere 2024,0.01,3.0\n")
    live = LivePage(runs, partial(load, runs, reference=reference), reference)
    assert b"Elsewhere 2024" in live.snapshot().data
    reference.write_text("label,cer,disk_mb\nothers,0.01,3.0\n")
    os.utime(reference, ns=(1, 1))
    assert b"others" in live.snapshot().data


def test_a_sweep_without_records_is_waited_for(tmp_path: Path, runs: Path) -> None:
    live = LivePage(tmp_path / "new", partial(load, tmp_path / "new"), None)
    (tmp_path / "new").mkdir()
    assert "no records" in json.loads(live.snapshot().data)["message"]
    (runs / record.FILE).rename(tmp_path / "new" / record.FILE)
    assert json.loads(live.snapshot().data)["sections"]


def test_a_page_is_not_built_twice_for_the_same_records(runs: Path) -> None:
    live = LivePage(runs, partial(load, runs), None)
    assert live.snapshot() is live.snapshot()


def test_a_port_that_is_taken_or_none_is_one_line_and_code_2(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server((HOST, 0)) as holder:
        port = holder.getsockname()[1]
        assert main([str(runs), "--watch", "--port", str(port)]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message == f"error: port {port} is in use: leave out --port to get a free one, or name another"
    for wrong in ("--watch --port 65536", "--port 8000", "--watch --out x", "--watch --wandb"):
        with pytest.raises(SystemExit, match="2"):
            main([str(runs), *wrong.split()])
    assert main([str(runs / "nothing"), "--watch"]) == 2


def test_an_interrupt_ends_it_quietly_and_it_writes_nothing(runs: Path) -> None:
    command = [sys.executable, "-m", "slimexp.report", str(runs), "--watch"]
    before = set(runs.rglob("*"))
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("live at http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out.strip(), err) == (0, "", "")
    assert set(runs.rglob("*")) == before


def raw(served: Server, request: bytes) -> bytes:
    """What the server sends until it ends the connection."""
    with socket.create_connection(served.server_address[:2], timeout=10) as client:
        client.sendall(request)
        output = b""
        while piece := client.recv(65536):
            output += piece
    return output


def test_only_reading_is_answered_and_one_name_is_needed(served: Server) -> None:
    host = f"Host: {HOST}:{served.server_address[1]}\r\n".encode()
    head = raw(served, b"HEAD / HTTP/1.0\r\n" + host + b"\r\n")
    assert head.startswith(b"HTTP/1.0 200") and head.endswith(b"\r\n\r\n") and b"<" not in head
    for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT"):
        assert b" 501 " in raw(served, method + b" / HTTP/1.0\r\n" + host + b"\r\n")
    for names in (b"", host + b"Host: evil.example\r\n", host + host):
        assert b" 403 " in raw(served, b"GET /data.json HTTP/1.0\r\n" + names + b"\r\n")
    assert b" 414 " in raw(served, b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n")[:100]
    assert b" 431 " in raw(served, b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 101 + b"\r\n")[:100]


def test_clients_that_say_nothing_are_few_and_do_not_stay(
    served: Server, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "CLIENTS", 2)
    monkeypatch.setattr(server, "SECONDS", 0.5)
    with Server(LivePage(runs, partial(load, runs), None), 0) as one:
        thread = Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        silent = [socket.create_connection(one.server_address[:2], timeout=10) for _ in range(2)]
        silent[0].sendall(b"GET / HT")
        for _ in range(50):  # both are held
            if b"503" in raw(one, b""):
                break
        else:
            raise AssertionError("a third client was taken")
        assert [client.recv(1) for client in silent] == [b"", b""]  # ended by the server
        for client in silent:
            client.close()
        for _ in range(100):
            try:
                if get(one, "/")[0].status == 200:
                    break
            except ConnectionError:
                pass
            time.sleep(0.02)
        else:
            raise AssertionError("the page is not answered any more")
        one.shutdown()
        thread.join()
    assert capsys.readouterr().err == ""
    assert server._Handler.timeout == server.SILENCE
