"""The tiny chain's bundle with its dictionary, and the app around it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline import Pipeline
from starlette.testclient import TestClient

from vtlvlm.app.server import Settings, application
from vtlvlm.recognizers.recognizer import ActionRecognizer

HERE = "http://127.0.0.1"


@pytest.fixture(scope="session")
def bundle(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a dictionary and its pictures."""
    folder = tmp_path_factory.mktemp("app")
    assert chain("dictionary", chain.run2, folder / "dictionary", "--exemplars", 2) == 0
    assert chain("export", chain.run2, folder / "bundle", "--dictionary", folder / "dictionary") == 0
    return folder / "bundle"


@pytest.fixture(scope="session")
def model(bundle: Path) -> Any:
    return ActionRecognizer.from_checkpoint(bundle)


Opened = Callable[..., TestClient]


@pytest.fixture
def opened(model: Any, tmp_path: Path) -> Iterator[Opened]:
    """Clients of apps, which end with the test."""
    clients = []
    (tmp_path / "store").mkdir()

    def open_(of: Any = model, **settings: Any) -> TestClient:
        client = TestClient(application(of, "mine", Settings(**{"folder": tmp_path / "store", **settings})), base_url=HERE)
        clients.append(client)
        client.__enter__()
        return client

    yield open_
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(opened: Opened) -> TestClient:
    return opened()


@pytest.fixture(scope="session")
def clip(chain: Pipeline) -> Path:
    """A video of the chain, an AVI."""
    return sorted(chain.root.glob("*.avi"))[0]
