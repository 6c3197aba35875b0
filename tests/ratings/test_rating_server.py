"""The study's server without a socket: a rater's way, what a browser may know, refusals."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient
from studies import SECRET, small_study

from vtlvlm.cli import main
from vtlvlm.ratings.answers import Answers
from vtlvlm.ratings.offline import write_pages
from vtlvlm.ratings.server import application
from vtlvlm.ratings.study_folder import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path / "study")


@pytest.fixture
def client(study: Study) -> TestClient:
    return TestClient(application(study, Answers(study)), base_url="http://127.0.0.1")


def answered(step: dict[str, Any]) -> dict[str, Any]:
    """What the page sends for a step."""
    given = {"choice": -1} if step["name"] == "identify" else {"scores": [step["check"] or 3] * 3}
    return {"trial": step["number"] - 1, "step": step["name"], **given, "ms": 1234}


def test_a_raters_way(client: TestClient, study: Study) -> None:
    """Every answer of a whole session, with a lost confirmation and a reload on the way; the browser never learns a condition."""
    seen = [client.get(path).text for path in ("/", "/about")]
    assert all(client.get(path).status_code == 200 for path in ("/study.js", "/study.css"))
    response = client.post("/sessions")
    assert response.status_code == 201
    view, names = response.json(), set()
    code = view["code"]
    while view["step"] is not None:
        step = view["step"]
        assert ("video" in step) == (step["name"] == "rate" and not step["check"])  # no clip before the action is named
        names |= {card["picture"] for card in step.get("cards", []) if card["picture"]} | ({step["video"]} if "video" in step else set())
        sent = answered(step)
        response = client.post(f"/sessions/{code}/answers", json=sent)
        assert response.status_code == 200
        assert client.post(f"/sessions/{code}/answers", json=sent).json() == response.json()  # sent again
        assert client.get(f"/sessions/{code}").json() == response.json()  # loaded again
        seen.append(response.text)
        view = response.json()
    assert view["done"] == view["trials"] == len(study.orders[0])
    for name in names:
        found = client.get(f"/media/{name}")
        assert found.status_code == 200
        assert found.headers["content-type"] in ("image/webp", "video/mp4")
    found = client.get(f"/media/{study.clips[0].video}", headers={"range": "bytes=0-9"})
    assert (found.status_code, len(found.content)) == (206, 10)
    everything = " ".join([*seen, *names]).lower()
    assert not [word for word in SECRET if word.lower() in everything]
    assert '"code":17' not in everything.replace(" ", "")
    assert len(Answers(study).sessions()[0].answers) == sum(1 if step.purpose == "check" else 2 for step in study.orders[0])


def test_the_same_page_for_both_conditions(client: TestClient, study: Study) -> None:
    """Trials of the two conditions have the same fields."""
    fields = set()
    for _ in range(2):
        view = client.post("/sessions").json()
        while view["step"] is not None:
            step = view["step"]
            if step["name"] == "identify":
                fields.add((*sorted(step), *sorted(step["cards"][0])))
            view = client.post(f"/sessions/{view['code']}/answers", json=answered(step)).json()
    assert len(fields) == 1


def test_withdrawal(client: TestClient, study: Study) -> None:
    view = client.post("/sessions").json()
    client.post(f"/sessions/{view['code']}/answers", json=answered(view["step"]))
    assert client.delete(f"/sessions/{view['code']}").status_code == 200
    assert Answers(study).codes() == []
    assert client.get(f"/sessions/{view['code']}").status_code == 400
    assert [path.name for path in study.answers.iterdir()] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"junk", 422),
        (b"[]", 422),
        (b'{"trial":0,"step":"identify","choice":"0","ms":1}', 422),
        (b'{"trial":0,"step":"identify","choice":0,"ms":1,"more":1}', 422),
        (b'{"trial":0,"step":"identify","choice":0,"ms":true}', 422),
        (b'{"trial":0,"step":"identify","choice":9,"ms":1}', 409),
        (b'{"trial":5,"step":"identify","choice":0,"ms":1}', 409),
        (b'{"trial":' + b"1" * 5000 + b',"step":"identify","choice":0,"ms":1}', 422),
        (b"[" * 60000, 422),
        (b" " * 100_000, 413),
    ],
)
def test_bad_bodies(body: bytes, status: int, client: TestClient, study: Study) -> None:
    code = client.post("/sessions").json()["code"]
    before = (study.answers / f"{code}.jsonl").read_bytes()
    response = client.post(f"/sessions/{code}/answers", content=body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert "\n" not in response.json()["error"]
    assert (study.answers / f"{code}.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "path", ["/sessions/abcdefgh", "/sessions/..%2f..%2fstudy", "/sessions/x", "/media/study.json", "/media/..%2fstudy.json"]
)
def test_names_that_the_server_did_not_give(path: str, client: TestClient) -> None:
    assert client.get(path).status_code in (400, 404)


def test_the_rules_of_a_local_server(study: Study) -> None:
    """Foreign hosts, other sites and a missing token are refused; the policy allows nothing from elsewhere."""
    plain = TestClient(application(study, Answers(study)), base_url="http://127.0.0.1")
    assert plain.get("/", headers={"host": "evil.example"}).status_code == 400
    assert plain.post("/sessions", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert plain.post("/sessions", headers={"origin": "http://evil.example"}).status_code == 403
    assert "default-src 'none'" in plain.get("/").headers["content-security-policy"]
    secret = TestClient(application(study, Answers(study), token="abc"), base_url="http://127.0.0.1")
    assert secret.post("/sessions").status_code == 401
    assert secret.post("/sessions", headers={"authorization": "Bearer abc"}).status_code == 201
    assert Answers(study).codes() == [Answers(study).sessions()[0].code]


def test_a_full_study(client: TestClient, study: Study) -> None:
    for _ in study.orders:
        assert client.post("/sessions").status_code == 201
    response = client.post("/sessions")
    assert response.status_code == 400
    assert "all 4 places of the study are taken" in response.json()["error"]


def test_pages_without_a_server(study: Study, tmp_path: Path) -> None:
    files = write_pages(study, tmp_path / "pages")
    assert [file.name for file in files] == ["page-01.html", "page-02.html", "page-03.html", "page-04.html"]
    for file in files:
        text = file.read_text()
        data = text[text.index('id="data">') : text.index("</script>", text.index('id="data">'))].lower()
        assert not [word for word in SECRET if word.lower() in data]
        assert 'src="' not in text.replace('src="data:', "")
        assert "connect-src" not in text  # default-src 'none' forbids every connection
        assert "default-src 'none'" in text


def test_a_server_that_does_not_start(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Each reason is one line, before the port opens."""
    serve = ["study", "serve", str(study.folder), "--port", "0"]
    assert main([*serve, "--host", "0.0.0.0"]) == 2
    assert "add --token" in capsys.readouterr().err
    with Answers(study).writing():
        assert main(serve) == 2
        assert "takes answers now; end it first" in capsys.readouterr().err
    clip = study.folder / "media" / study.clips[0].video
    clip.write_bytes(clip.read_bytes()[:-1])
    assert main(serve) == 1
    assert "has changed since the study was made; copy the study's folder again" in capsys.readouterr().err
    assert main(["study", "pages", str(study.folder), str(study.folder.parent / "pages")]) == 1
