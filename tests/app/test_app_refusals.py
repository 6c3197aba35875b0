"""Bad input to the app, and who may ask it: each is one clear line, and the next request works."""

import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from app_clients import finished, recognised, sent
from starlette.testclient import TestClient
from videos import damaged, encode, moving_block

from vtlvlm.app import clips as clips_module
from vtlvlm.app.server import Settings, application
from vtlvlm.errors import UsageError

# -- bad input ---------------------------------------------------------------------------------------------------------------------


def test_files_that_are_no_usable_videos(client: TestClient, tmp_path: Path) -> None:
    hole = damaged(tmp_path / "hole.avi").read_bytes()
    for content, said in ((b"no video at all" * 50, "not a "), (hole, "damaged"), (b"\x00" * 2_000_000, "zeros"), (hole[:400], "")):
        name, found = recognised(client, content)
        assert found["stage"] == "failed"
        assert said in found["error"]
        assert "\n" not in found["error"]
        assert str(tmp_path) not in found["error"]
        assert client.get(f"/clips/{name}/video").status_code == 404
        answer = client.post("/api/classify", content=content)
        assert answer.status_code == 422
        assert answer.json()["error"] == found["error"]
    assert client.post("/api/classify", content=b"").status_code == 422


def test_playlists_open_no_other_file(client: TestClient, tmp_path: Path) -> None:
    """ffconcat opens files of its folder, and HLS any .ts by its path."""
    neighbour = encode(tmp_path / "secret.mp4", moving_block(20, falls=True, shade=60))
    lists = [
        f"ffconcat version 1.0\nfile {neighbour}\n",
        f"ffconcat version 1.0\nfile ../../{neighbour.name}\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{neighbour}\n#EXT-X-ENDLIST\n",
        f"\ufeff#EXTM3U\n#EXTINF:1,\nfile://{neighbour}\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n{neighbour}",
    ]
    for text in lists:
        answer = client.post("/api/classify", content=text.encode())
        assert answer.status_code == 422, text
        assert "secret" not in answer.json()["error"]


def test_limits(opened: Any, clip: Path, tmp_path: Path) -> None:
    small = opened(megabytes=0.001)
    assert small.post("/clips", content=clip.read_bytes()).status_code == 413
    assert small.post("/api/classify", content=clip.read_bytes()).status_code == 413
    short = opened(minutes=0.005)
    answer = short.post("/api/classify", content=clip.read_bytes())
    assert answer.status_code == 422
    assert "--max-minutes" in answer.json()["error"]
    _, found = recognised(short, clip)
    assert found["stage"] == "failed"
    assert "minutes" in found["error"]


def test_a_full_queue_refuses_and_keeps_the_clip(client: TestClient, model: Any, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, classify = Event(), model.classify

    def slow(file: Path, top: int) -> Any:
        go.wait(30)
        return classify(file, top)

    monkeypatch.setattr(model, "classify", slow)
    names = [sent(client, clip) for _ in range(6)]
    codes = [client.post(f"/clips/{name}/recognise").status_code for name in names]
    assert codes == [202] * 5 + [503]
    assert client.post(f"/clips/{names[0]}/recognise").status_code == 202  # asked twice, done once
    refused = client.post("/api/classify", content=clip.read_bytes())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert client.get("/health").status_code == 200  # the server answers meanwhile
    go.set()
    for name in names[:5]:
        assert finished(client, name)["stage"] == "done"
    assert client.post(f"/clips/{names[5]}/recognise").status_code == 202
    assert finished(client, names[5])["stage"] == "done"


def test_a_clip_that_is_removed_while_it_is_worked_on(client: TestClient, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, write = Event(), clips_module.write_preview

    def slow(source: Path, target: Path, **how: Any) -> None:
        entered.set()
        assert how["stop"].wait(30)
        write(source, target, **how)

    monkeypatch.setattr(clips_module, "write_preview", slow)
    name = sent(client, clip)
    client.post(f"/clips/{name}/recognise")
    assert entered.wait(30)
    assert client.delete(f"/clips/{name}").status_code == 204
    monkeypatch.undo()
    assert recognised(client, clip)[1]["stage"] == "done"  # the thread is free again


def test_a_full_disk_for_the_copy_keeps_the_answer(client: TestClient, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtlvlm.data import preview

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview, "_encode", full)
    name, found = recognised(client, clip)
    assert (found["stage"], found["video"]) == ("done", None)
    assert found["answer"]["actions"]
    assert "No space left on device" in found["video_error"]
    assert client.get(f"/clips/{name}/video").status_code == 404


def test_a_defect_is_one_line_and_the_server_goes_on(
    client: TestClient, model: Any, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(file: Path, top: int) -> Any:
        raise RuntimeError(f"at {file}")

    monkeypatch.setattr(model, "classify", broken)
    found = recognised(client, clip)[1]
    assert found["error"] == "this is a defect: RuntimeError; the server's terminal says more"
    assert "defect: RuntimeError" in capsys.readouterr().err
    assert client.post("/api/classify", content=clip.read_bytes()).status_code == 500
    monkeypatch.undo()
    assert recognised(client, clip)[1]["stage"] == "done"


# -- security: the rules of the room `web` hold for these routes -------------------------------------------------------------------


def test_other_sites_and_hosts_get_nothing(client: TestClient, clip: Path) -> None:
    for method, path in (("POST", "/clips"), ("POST", "/api/classify"), ("POST", "/clips/x/recognise"), ("DELETE", "/clips/x")):
        assert client.request(method, path, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert client.request(method, path, headers={"origin": "http://evil.example"}).status_code == 403
    for path in ("/", "/api/model", "/codes?ids=1", "/codes/1.webp", "/clips/x/video"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 400


def test_with_a_token_nothing_but_health_answers_without_it(opened: Any) -> None:
    client = opened(token="secret")
    for path in ("/", "/app.js", "/api/model", "/codes?ids=1", "/clips/x"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer secret"}).status_code in (200, 404)
    assert client.post("/clips", content=b"x").status_code == 401
    assert client.get("/health").status_code == 200


def test_no_two_clips_have_names_that_can_be_guessed(client: TestClient) -> None:
    names = {sent(client, b"x") for _ in range(20)}
    assert len(names) == 20
    assert min(map(len, names)) == 24


def test_the_end_removes_the_private_folder(model: Any, clip: Path, tmp_path: Path) -> None:
    app = application(model, "mine", Settings(folder=tmp_path))
    assert not list(tmp_path.iterdir())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        sent(client, clip)
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert os.listdir(folder)  # noqa: PTH208
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"megabytes": 0}, {"minutes": -1}, {"keep": float("nan")}, {"clip": 0.0}, {"minutes": 1e9}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Settings(**settings)  # type: ignore[arg-type]
