"""The routes of the app: what they answer is what the package computes."""

import io
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

import numpy as np
import pytest
from app_clients import finished, recognised, sent, without_seconds
from PIL import Image
from pipeline import Pipeline
from starlette.testclient import TestClient
from videos import encode, moving_block

from vtlvlm.app.comparing import align
from vtlvlm.app.server import FILES, PAGE
from vtlvlm.data.video import probe
from vtlvlm.recognizers.answers import as_dict
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.segments.finding import Rule, find
from vtlvlm.segments.windows import Grid
from vtlvlm.web.guard import HEADERS

# -- the page's own files ----------------------------------------------------------------------------------------------------------


def test_the_page_is_served_whole(client: TestClient) -> None:
    assert sorted(FILES) == sorted(path.name for path in PAGE.iterdir())
    for name in FILES:
        answer = client.get("/" if name == "index.html" else f"/{name}")
        assert answer.content == (PAGE / name).read_bytes()
        assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]
        assert answer.headers["content-type"].split(";")[0] in ("text/html", "text/javascript", "text/css")
    assert client.get("/../server.py").status_code == 404
    assert client.get("/%2e%2e/server.py").status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_the_page_loads_nothing_from_elsewhere_and_shows_names_as_text(name: str) -> None:
    text = (PAGE / name).read_text().replace("http://www.w3.org/2000/svg", "")
    for word in (
        "http:",
        "https:",
        "//cdn",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        " style=",
        "onclick=",
    ):
        assert word not in text, word


# -- programs ----------------------------------------------------------------------------------------------------------------------


def test_a_program_gets_what_classify_says(client: TestClient, model: Any, clip: Path, tmp_path: Path) -> None:
    answer = client.post("/api/classify?top=2", content=clip.read_bytes())
    assert answer.status_code == 200
    assert without_seconds(answer.json()) == without_seconds(json.loads(json.dumps(as_dict(model.classify(clip, 2)))))
    assert answer.json()["file"] == "upload"
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))  # the clip is removed


def test_health_and_the_model(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    found = client.get("/api/model").json()
    assert (found["name"], found["actions"], found["sentence"], found["dictionary"]) == ("mine", 2, True, True)


@pytest.mark.parametrize("top", ["0", "-1", "1.5", "x", "nan", "inf"])
def test_a_top_that_is_none(client: TestClient, clip: Path, top: str) -> None:
    answer = client.post(f"/api/classify?top={top}", content=clip.read_bytes())
    assert answer.status_code == 400
    assert "top" in answer.json()["error"]


# -- the page's clips --------------------------------------------------------------------------------------------------------------


def test_a_clip_from_its_bytes_to_its_removal(client: TestClient, model: Any, clip: Path, tmp_path: Path) -> None:
    name, found = recognised(client, clip)
    assert without_seconds(found["answer"]) == without_seconds(json.loads(json.dumps(as_dict(model.classify(clip, 20)))))
    assert (found["stage"], found["video"], found["error"], found["segments"], found["long"]) == ("done", "video/mp4", None, None, False)
    answer = client.get(f"/clips/{name}/video")
    assert answer.headers["content-type"] == "video/mp4"  # a copy: no browser plays the AVI
    assert answer.headers["x-content-type-options"] == "nosniff"
    (tmp_path / "copy.mp4").write_bytes(answer.content)
    assert probe(tmp_path / "copy.mp4").frames == probe(clip).frames
    part = client.get(f"/clips/{name}/video", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, answer.content[10:20])
    assert client.delete(f"/clips/{name}").status_code == 204
    for path in (f"/clips/{name}", f"/clips/{name}/video"):
        assert client.get(path).status_code == 404
    assert client.post(f"/clips/{name}/recognise").status_code == 404
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_what_browsers_play_is_served_as_it_is_and_copied_when_asked(client: TestClient, tmp_path: Path) -> None:
    file = encode(tmp_path / "a.mp4", moving_block(15, falls=True, shade=60))
    name, found = recognised(client, file)
    assert found["video"] == "video/mp4"
    assert client.get(f"/clips/{name}/video").content == file.read_bytes()
    assert client.post(f"/clips/{name}/preview").status_code == 202
    assert finished(client, name)["video"] == "video/mp4"
    assert client.get(f"/clips/{name}/video").content != file.read_bytes()


def test_a_long_video_gets_its_segments(opened: Any, model: Any, tmp_path: Path) -> None:
    block = np.concatenate([moving_block(30, falls=True, shade=40), moving_block(30, falls=False, shade=90)])
    file = encode(tmp_path / "long.mp4", block)
    client = opened(clip=0.5)
    name, found = recognised(client, file)
    expected = find(model, file, Grid(0.5, 0.125), Rule())
    rows = [(one.label, round(one.start, 3), round(one.end, 3)) for one in expected.segments]
    assert found["long"]
    assert [(one["action"], one["start"], one["end"]) for one in found["segments"]["segments"]] == rows
    assert client.post(f"/clips/{name}/segments?clip=1").status_code == 202
    again = finished(client, name)
    assert again["segments"]["clip"] == 1
    assert len(again["segments"]["segments"]) == len(find(model, file, Grid(1.0, 0.25), Rule()).segments)
    for words in ("clip=0", "clip=x", "clip=nan", "clip=inf"):
        assert client.post(f"/clips/{name}/segments?{words}").status_code == 400


def test_two_clips_beside_each_other(client: TestClient, model: Any, chain: Pipeline) -> None:
    files = sorted(chain.root.glob("*.avi"))[:2]
    (a, one), (b, other) = (recognised(client, file) for file in files)
    found = client.get(f"/compare?a={a}&b={b}").json()
    expected = align(*(np.array(row["answer"]["events"]["codes"]) for row in (one, other)))
    assert found["pairs"] == [list(pair) for pair in expected.pairs]
    assert found["shared"] == [list(row) for row in expected.shared]
    assert client.get(f"/compare?a={a}&b={a}").json()["likeness"] == 1
    assert client.get(f"/compare?a={a}").status_code == 404
    waiting = sent(client, files[0])
    assert client.get(f"/compare?a={a}&b={waiting}").status_code == 409
    assert client.post(f"/clips/{waiting}/segments").status_code == 409
    assert client.post(f"/clips/{a}/fly").status_code == 404


# -- codes -------------------------------------------------------------------------------------------------------------------------


def test_codes_are_those_of_the_dictionary(client: TestClient, model: Any) -> None:
    found = client.get("/codes?ids=0,1,7").json()
    for code in (0, 1, 7):
        entry = model.dictionary[code]
        assert found[str(code)]["tokens"] == entry.tokens
        assert [one["action"] for one in found[str(code)]["actions"]] == [one.action for one in entry.actions]
        assert found[str(code)]["pictures"] == len(entry.exemplars)
    code = next(code for code in model.dictionary if model.dictionary[code].exemplars)
    answer = client.get(f"/codes/{code}.webp")
    assert answer.headers["content-type"] == "image/webp"
    exemplars = [one.picture for one in model.dictionary[code].exemplars]
    picture = np.asarray(Image.open(io.BytesIO(answer.content), formats=["WEBP"]).convert("RGB")).astype(int)
    assert np.abs(picture - np.concatenate(exemplars, axis=1)).mean() < 6
    assert client.get("/codes/8.webp").status_code == 404
    assert client.get("/codes?ids=8").json()["error"] == "code 8: the codes are 0 to 7"


@pytest.mark.parametrize("ids", ["", "x", "-1", "1;2", "1.5", "9999999999", ",".join(["1"] * 600), "\u0663"])
def test_lists_of_codes_that_are_none(client: TestClient, ids: str) -> None:
    assert client.get("/codes", params={"ids": ids}).status_code == 400


def test_without_a_dictionary_codes_say_how_to_make_one(opened: Any, chain: Pipeline, clip: Path) -> None:
    client = opened(ActionRecognizer.from_checkpoint(chain.bundle))
    assert client.get("/api/model").json()["dictionary"] is False
    for path in ("/codes?ids=1", "/codes/1.webp"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "`vtlvlm dictionary RUN DIR` makes one" in answer.json()["error"]
    assert recognised(client, clip)[1]["answer"]["events"]["codes"]


def test_a_bundle_s_picture_is_no_way_to_other_files(opened: Any, bundle: Path, tmp_path: Path) -> None:
    """A bundle is untrusted: its picture may be a link, or a page."""
    import shutil

    other = tmp_path / "bundle"
    shutil.copytree(bundle, other)
    (tmp_path / "secret").write_text("secret")
    model: Any = ActionRecognizer.from_checkpoint(other)
    first, second = [code for code in model.dictionary if model.dictionary[code].shown][:2]
    for code in (first, second):
        (other / "dictionary" / "codes" / f"{code}.webp").unlink()
    (other / "dictionary" / "codes" / f"{first}.webp").symlink_to(tmp_path / "secret")
    (other / "dictionary" / "codes" / f"{second}.webp").write_text("<script>alert(1)</script>")
    client = opened(model)
    for code in (first, second):
        answer = client.get(f"/codes/{code}.webp")
        assert answer.status_code == 422
        assert "secret" not in answer.text
        assert "script" not in answer.text


# -- other models ------------------------------------------------------------------------------------------------------------------


def test_a_linear_probe_has_no_event_sentence(opened: Any, chain: Pipeline, clip: Path, tmp_path: Path) -> None:
    assert chain("probe", chain.root, "--features", chain.features, "--export", tmp_path / "probe") == 0
    client = opened(ActionRecognizer.from_checkpoint(tmp_path / "probe"))
    facts = client.get("/api/model").json()
    assert (facts["sentence"], facts["dictionary"]) == (False, False)
    name, found = recognised(client, clip)
    assert found["stage"] == "done"
    assert found["answer"]["events"] is None
    assert len(found["answer"]["sampled"]["times"]) == 8
    assert client.get(f"/compare?a={name}&b={name}").status_code == 409


def test_the_program_of_the_page_s_document_runs(
    client: TestClient, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its request goes to the application without a network."""
    text = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, tmp_path / "clip.mp4")
    asked: list[str] = []

    def urlopen(request: Request) -> io.BytesIO:
        asked.append(request.full_url)
        assert isinstance(request.data, bytes)
        return io.BytesIO(client.post(urlsplit(request.full_url).path, content=request.data).content)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    exec(compile(program, "docs/app.md", "exec"), {"__name__": "document"})
    assert asked == ["http://127.0.0.1:8765/api/classify"]
    assert "probability" in capsys.readouterr().out
