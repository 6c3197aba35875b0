"""Uploads: where they are kept, when they are removed, and what is refused while it arrives."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from vtlvlm.web import store as module
from vtlvlm.web.guard import guarded
from vtlvlm.web.store import Store, Stored, body_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(limit=1000, keep=60, most=3, parent=tmp_path)
    yield found
    found.close()


@pytest.fixture
def client(store: Store) -> TestClient:
    async def take(request: Request) -> Response:
        one = await store.receive(request)
        return JSONResponse({"id": one.name, "size": one.size})

    async def show(request: Request) -> Response:
        return JSONResponse({"size": store.get(request.path_params["id"]).size})

    async def small(request: Request) -> Response:
        return JSONResponse(len(await body_of(request, 100)))

    routes = [Route("/clips", take, methods=["POST"]), Route("/clips/{id}", show), Route("/small", small, methods=["POST"])]
    return TestClient(guarded(routes), base_url="http://127.0.0.1")


def parts(*sizes: int) -> Iterator[bytes]:
    """A body without a declared length."""
    yield from (bytes(size) for size in sizes)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_upload_is_private_and_has_no_name_of_the_client(client: TestClient, store: Store) -> None:
    answer = client.post("/clips?name=../../evil.m3u8", content=b"video", headers={"content-disposition": 'filename="../x.mp4"'})
    one = store.get(answer.json()["id"])
    assert (one.file.read_bytes(), one.size, one.file.name, one.file.suffix) == (b"video", 5, "upload", "")
    assert len(one.name) == 24
    assert one.file.parent.parent == store.folder
    for folder in (store.folder, one.file.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(one.file.stat().st_mode) == 0o600


def test_the_limit_holds_while_it_arrives(client: TestClient, store: Store) -> None:
    assert client.post("/clips", content=parts(400, 600)).json()["size"] == 1000
    answer = client.post("/clips", content=parts(400, 600, 1))
    assert answer.status_code == 413
    assert "1 KB" in answer.json()["error"]
    assert client.post("/clips", content=bytes(1001)).status_code == 413
    assert len(store) == 1
    assert len(files_in(store.folder)) == 1


def test_what_follows_the_limit_is_not_read(store: Store) -> None:
    """An endless upload ends at the limit."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield bytes(100)

    file = store.folder / "upload"
    with pytest.raises(Exception, match="larger than"):
        anyio.run(store._write, endless(), file)
    assert read == 11


def test_a_declared_length_beyond_the_limit_is_refused_before_it_arrives(store: Store) -> None:
    async def never() -> Any:
        raise AssertionError("read")

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-length", b"1001")]}, never)
    with pytest.raises(Exception, match="larger than"):
        anyio.run(store.receive, request)


def test_an_upload_that_stalls_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)

    async def silent() -> Any:
        await anyio.sleep(60)

    request = Request({"type": "http", "method": "POST", "headers": []}, silent)
    with pytest.raises(Exception, match="nothing arrived"):
        anyio.run(store.receive, request)
    assert not files_in(store.folder)


def test_an_upload_that_breaks_off_leaves_nothing(store: Store) -> None:
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(Exception, match="broke off"):
        anyio.run(store.receive, request)
    assert not list(store.folder.iterdir())


def test_an_empty_upload_is_refused(client: TestClient, store: Store) -> None:
    answer = client.post("/clips", content=b"")
    assert (answer.status_code, answer.json()["error"]) == (422, "an empty file (0 bytes); send a video")
    assert not list(store.folder.iterdir())


def test_a_full_disk_is_said(client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, part: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_all", full)
    answer = client.post("/clips", content=b"video")
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["error"]
    assert not list(store.folder.iterdir())
    monkeypatch.undo()
    assert client.post("/clips", content=b"video").status_code == 200  # the server goes on
    monkeypatch.setattr(module, "SPARE", 1 << 60)
    assert client.post("/clips", content=b"video").status_code == 507  # before it arrives


def test_a_full_store_refuses_and_keeps_what_it_has(client: TestClient, store: Store) -> None:
    names = [client.post("/clips", content=b"video").json()["id"] for _ in range(3)]
    answer = client.post("/clips", content=b"video")
    assert answer.status_code == 507
    assert "3 clips" in answer.json()["error"]
    assert all(client.get(f"/clips/{name}").status_code == 200 for name in names)
    store.remove(names[0])
    store.remove("none")
    assert client.get(f"/clips/{names[0]}").status_code == 404
    assert client.post("/clips", content=b"video").status_code == 200


def test_what_nobody_asks_for_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    for name, used, held in (("old", now - 61, 0), ("busy", now - 61, 1), ("new", now, 0)):
        (store.folder / name).mkdir()
        store._items[name] = Stored(name, store.folder / name / "upload", 1, used, held)
    store.sweep()
    assert sorted(path.name for path in store.folder.iterdir()) == ["busy", "new"]


def test_names_are_no_paths(client: TestClient) -> None:
    for name in ("..", "%2e%2e", "..%2fupload", "%2fetc%2fpasswd", "a/b"):
        assert client.get(f"/clips/{name}").status_code == 404


def test_the_end_removes_everything(tmp_path: Path) -> None:
    found = Store(10, 10, parent=tmp_path)
    (found.folder / "x").mkdir()
    found.close()
    assert not list(tmp_path.iterdir())


def test_the_next_server_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    prefix = f"{module._PREFIX}{module._host()}"
    dead, alive = tmp_path / f"{prefix}-{killed.pid}-a", tmp_path / f"{prefix}-{os.getppid()}-b"
    elsewhere = tmp_path / f"{module._PREFIX}otherhost-{killed.pid}-a"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    Store(10, 10, parent=tmp_path).close()
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere])


def test_small_bodies(client: TestClient) -> None:
    assert client.post("/small", content=bytes(100)).json() == 100
    assert client.post("/small", content=parts(60, 60)).status_code == 413
