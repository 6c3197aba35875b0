"""The rules of a local server, each by a request that breaks it."""

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from vtlvlm.errors import DataError, UsageError
from vtlvlm.web.guard import HEADERS, guarded, hosts_of, new_token

HERE = "http://127.0.0.1"


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def broken(request: Request) -> Response:
    kinds = {
        "data": DataError("clip: damaged\x1b[31m"),
        "usage": UsageError("top: at least 1"),
        "disk": OSError(28, "No space left on device"),
    }
    raise kinds.get(request.path_params["kind"], KeyError("own/path/of/the/server"))


ROUTES = [Route("/", hello, methods=["GET", "POST", "DELETE"]), Route("/health", hello), Route("/broken/{kind}", broken)]


@pytest.fixture
def client() -> TestClient:
    return TestClient(guarded(ROUTES), base_url=HERE)


def test_every_answer_has_the_headers(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/none"), client.get("/", headers={"host": "evil.example"}), client.get("/broken/defect")):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "*" not in policy


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "0.0.0.0", "127.0.0.1@evil.example"]
)
def test_foreign_hosts_are_refused(client: TestClient, host: str) -> None:
    """What rebinding of DNS sends."""
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8765", "localhost:80", "LOCALHOST", "[::1]:8765"])
def test_own_hosts_pass(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "anything"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_other_sites_change_nothing(client: TestClient, method: str, site: str) -> None:
    answer = client.request(method, "/", headers={"sec-fetch-site": site})
    assert answer.status_code == 403
    assert "another site" in answer.json()["error"]


def test_older_browsers_say_their_origin(client: TestClient) -> None:
    assert client.post("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/", headers={"origin": "null"}).status_code == 403
    assert client.post("/", headers={"origin": "http://127.0.0.1:9"}).status_code == 403  # another server of this machine
    assert client.post("/", headers={"origin": HERE}).status_code == 200


def test_programs_and_the_own_page_pass(client: TestClient) -> None:
    assert client.post("/").status_code == 200
    assert client.post("/", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "none"}).status_code == 200


def test_a_token_is_needed_everywhere_but_for_health() -> None:
    token = new_token()
    client = TestClient(guarded(ROUTES, token=token), base_url=HERE, follow_redirects=False)
    assert client.get("/").status_code == 401
    assert client.post("/").status_code == 401
    assert client.get("/none").status_code == 401
    assert client.get("/health").status_code == 200
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/", headers={"authorization": "Bearer \u00e4".encode()}).status_code == 401
    assert client.get("/", headers={"authorization": f"Basic {token}"}).status_code == 401
    assert client.post("/", headers={"authorization": f"Bearer {token}"}).status_code == 200
    answer = client.get(f"/?token={token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite" in cookie
    assert client.post("/").status_code == 200  # by the cookie
    assert client.post("/", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert TestClient(guarded(ROUTES, token=new_token()), base_url=HERE, cookies=dict(client.cookies)).get("/").status_code == 401


def test_tokens_are_long_and_differ() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert min(len(new_token()) for _ in range(100)) == 32


def test_errors_are_one_line(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    answer = client.get("/broken/data")
    assert (answer.status_code, answer.json()) == (422, {"error": "clip: damaged\\x1b[31m"})
    assert client.get("/broken/usage").status_code == 400
    assert client.get("/none").json() == {"error": "Not Found"}
    assert client.put("/").headers["allow"]
    answer = client.get("/broken/disk")
    assert answer.status_code == 507
    assert "no space left" in answer.json()["error"]
    answer = client.get("/broken/defect")
    assert answer.status_code == 500
    assert "own/path" not in answer.text
    assert "KeyError: 'own/path/of/the/server'" in capsys.readouterr().err


def test_names_of_this_machine() -> None:
    assert hosts_of("127.0.0.1") == ["127.0.0.1", "localhost", "::1"]
    found = hosts_of("0.0.0.0", ["proxy.example", "*"])
    assert "proxy.example" in found
    assert "*" not in found
    assert len(found) > 4
