"""A server on a real port: found, answering, ended by a signal; and what is refused before it starts."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette

from vtlvlm.errors import UsageError
from vtlvlm.web import serving
from vtlvlm.web.guard import guarded
from vtlvlm.web.serving import address_of, bound, require_extra, require_token, serve

SERVER = """
import sys, time
import anyio
from pathlib import Path
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vtlvlm.web.guard import guarded
from vtlvlm.web.serving import address_of, bound, pages, serve
from vtlvlm.web.store import Store

async def slow(request):
    await anyio.sleep(0.5)
    return PlainTextResponse("whole")

store = Store(10, 10, parent=Path(sys.argv[1]))
socket = bound("127.0.0.1", 0)
(Path(sys.argv[1]) / "index.html").write_text("<p>page</p>")
routes = [*pages(Path(sys.argv[1]), ["index.html"]), Route("/slow", slow)]
try:
    serve(guarded(routes), socket, lambda: print(address_of(socket), flush=True))
finally:
    store.close()
print("ended", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_server_from_start_to_end(tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert answer.read() == b"<p>page</p>"
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "server" not in answer.headers
            assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
            waiting = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))))
            waiting.sendall(b"GET /slow HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            time.sleep(0.2)
            process.send_signal(how)
            said = b""
            while part := waiting.recv(4096):
                said += part
            assert said.endswith(b"whole")  # an answer in progress is given
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_port_0_is_any_free_one() -> None:
    with bound("127.0.0.1", 0) as one, bound("localhost", 0) as other:
        assert one.getsockname()[1] != other.getsockname()[1] != 0
        assert address_of(one) == f"http://127.0.0.1:{one.getsockname()[1]}/"
        assert address_of(one, "secret").endswith("/?token=secret")


def test_a_taken_port_is_named() -> None:
    with bound("127.0.0.1", 0) as one:
        one.listen()
        with pytest.raises(UsageError, match="is used by another program"):
            bound("127.0.0.1", one.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("no such host", 0), ("192.0.2.1", 0)])
def test_addresses_that_are_none(host: str, port: int) -> None:
    with pytest.raises(UsageError, match=r"use 127\.0\.0\.1"):
        bound(host, port).close()


def test_other_machines_need_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        require_token(host, False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "myhost", ""):
        with pytest.raises(UsageError, match="add --token"):
            require_token(host, False)
        require_token(host, True)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra()
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UsageError, match=r"uvicorn is not installed.*vtlvlm\[app\]"):
        require_extra()


def test_the_room_is_light() -> None:
    """It knows no model: torch is not imported."""
    code = "import sys, vtlvlm.web.guard, vtlvlm.web.store, vtlvlm.web.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "False"


def test_a_server_that_cannot_start_says_why() -> None:
    @asynccontextmanager
    async def failing(app: Starlette) -> AsyncIterator[None]:
        app.state.failure = OSError(28, "No space left on device")
        raise app.state.failure
        yield

    with pytest.raises(UsageError, match=r"cannot start \(.*No space left on device\); TMPDIR"):
        serve(guarded([], lifespan=failing), bound("127.0.0.1", 0), lambda: pytest.fail("ready"))
