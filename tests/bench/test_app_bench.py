"""The figures of the page's server, on a tiny bundle."""

from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline
from videos import encode, moving_block

pytest.importorskip("starlette", reason="needs pip install 'vtlvlm[app]'")

from vtlvlm.bench import app
from vtlvlm.cli import main


def test_the_page_answers_and_a_request_says_what_the_recogniser_says(
    chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = encode(tmp_path / "clip.mp4", np.asarray(moving_block(30, falls=True, shade=40)), rate=30)
    monkeypatch.setattr(app, "camera_clips", lambda work, videos: {"H.264": clip})
    before = {one.name for one in tmp_path.iterdir()}
    (ready, over, same), facts = app.measure(tmp_path, chain.run2, None, 1)
    assert ready.value is not None
    assert 0 < ready.value < 30
    assert over.value is not None
    assert over.value > 0
    assert same.value == 1
    assert facts == {"model": chain.run2.name, "repeats": 1}
    assert {one.name for one in tmp_path.iterdir()} == before  # the server has removed its clips


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["app", "--tiny"], "--tiny: bench app takes --model, --videos, --repeats, --work and --output"),
        (["app", "--repeats", "0"], "--repeats 0: at least 1"),
        (["app", "--model", "nothing"], "nothing: no such model"),
        (["vtem", "--model", "nothing"], "--model: bench vtem takes --repeats, --work and --output"),
    ],
)
def test_what_is_refused(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert line in capsys.readouterr().err
