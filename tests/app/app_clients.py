"""What tests ask the app's routes."""

import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient


def sent(client: TestClient, file: Path | bytes) -> str:
    answer = client.post("/clips", content=file if isinstance(file, bytes) else file.read_bytes())
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def finished(client: TestClient, name: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found: dict[str, Any] = client.get(f"/clips/{name}").json()
        if found["stage"] in ("done", "failed"):
            return found
        time.sleep(0.02)
    raise TimeoutError(found)


def recognised(client: TestClient, file: Path | bytes) -> tuple[str, dict[str, Any]]:
    name = sent(client, file)
    assert client.post(f"/clips/{name}/recognise").status_code == 202
    return name, finished(client, name)


def without_seconds(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("seconds", "file")}
