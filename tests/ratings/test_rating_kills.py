"""The study's server is killed at random moments while a program answers, and started again: no answer is lost or doubled."""

import http.client
import json
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pipeline import alone
from studies import small_study

from vtlvlm.ratings.answers import Answers, steps_of
from vtlvlm.ratings.design import Design
from vtlvlm.ratings.study_folder import Study

pytest.importorskip("starlette")


class Server:
    """``vtlvlm study serve``; it dies by itself after some seconds."""

    def __init__(self, study: Study, dies_after: float | None) -> None:
        command = [sys.executable, "-m", "vtlvlm", "study", "serve", str(study.folder), "--port", "0"]
        self.process = subprocess.Popen(command, env=alone(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r":(\d+)/", said)
        assert found, said
        self.port = int(found[1])
        self.killed = dies_after is not None
        if dies_after is not None:
            threading.Timer(dies_after, self.process.kill).start()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON; None if the server died."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            content = json.loads(response.read())
            connection.close()
        except (OSError, http.client.HTTPException, ValueError):
            return None
        assert response.status in (200, 201), content
        return content

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def answered_through_kills(study: Study, kills: int, seed: int) -> None:
    """Answer until the server has been killed so often, and then to the end of the session."""
    rng, code, confirmed, sessions, left = random.Random(seed), None, 0, 0, kills
    while left or code is not None:
        server = Server(study, rng.uniform(0.0, 0.5) if left else None)
        while server.process.poll() is None:
            view = server.ask("POST", "/sessions") if code is None else server.ask("GET", f"/sessions/{code}")
            while view is not None and view["step"] is not None:
                code, step = view["code"], view["step"]
                given = {"choice": -1} if step["name"] == "identify" else {"scores": [step["check"] or 2] * 3}
                view = server.ask(
                    "POST", f"/sessions/{code}/answers", {"trial": step["number"] - 1, "step": step["name"], **given, "ms": 1}
                )
                confirmed += view is not None
            if view is None:
                break
            sessions, code, confirmed = sessions + 1, None, 0
            if not left:
                break
        server.end()
        left -= min(left, int(server.killed))
        if code is not None:
            found = Answers(study).read(code)
            assert found is not None
            stored = [(answer.trial, answer.step) for answer in found.answers]
            assert stored == steps_of(study.orders[found.slot])[: len(stored)]
            assert len(stored) - confirmed in (0, 1)
            confirmed = len(stored)
    assert sessions
    for session in Answers(study).sessions():
        assert [(answer.trial, answer.step) for answer in session.answers] == steps_of(study.orders[session.slot])[: len(session.answers)]


def test_the_server_survives_kills(tmp_path: Path) -> None:
    answered_through_kills(small_study(tmp_path / "study", Design(clips=8, raters=40, seed=2)), 3, seed=0)


@pytest.mark.slow
def test_the_server_survives_fifty_kills(tmp_path: Path) -> None:
    answered_through_kills(small_study(tmp_path / "study", Design(clips=40, raters=80, seed=2)), 50, seed=1)
