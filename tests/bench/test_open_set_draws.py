"""The draws of left-out actions, and the figures of a draw on a tiny model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline

from vtlvlm.bench import open_set
from vtlvlm.bench.open_set import LEFT_OUT, Draw, _figures, _measured
from vtlvlm.cli import main
from vtlvlm.synth.untrimmed import FOLLOWS, SUITABLE, generate_untrimmed


def test_draws_differ_and_keep_pairs_together(tmp_path: Path) -> None:
    drawn = [Draw(number, tmp_path).left_out for number in range(9)]
    assert drawn[0] == []
    assert len({tuple(one) for one in drawn}) > 6
    for one in drawn[1:]:
        assert LEFT_OUT <= len(one) <= LEFT_OUT + 1
        assert set(one) <= set(SUITABLE)
        assert all((first in one) == (second in one) for first, second in FOLLOWS.items())
    assert drawn == [Draw(number, tmp_path).left_out for number in range(9)]


def test_the_figures_of_a_draw(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model of two other actions: the files are read, every clip is counted once, and every figure is a share."""
    videos = tmp_path / "videos" / "nturgb+d_rgb"
    videos.mkdir(parents=True)
    for file in chain.root.glob("*.avi"):
        shutil.copy(file, videos)
    draw = Draw(1, tmp_path)
    monkeypatch.setattr(Draw, "left_out", property(lambda self: [2]))
    assert chain("export", chain.run2, draw.bundle, "--acceptance", 0.5) == 0
    monkeypatch.setattr("vtlvlm.synth.untrimmed.STILL", 3)
    generate_untrimmed(tmp_path / "idle", people=[3], parts=0, seed=1, workers=1, progress=False)
    generate_untrimmed(draw.folder / "long", people=[3], parts=1, actions=[10, 22], unlisted=[23], seed=1, workers=1, progress=False)
    monkeypatch.setattr(open_set, "FOREIGN", 2)
    found = _measured(draw, tmp_path / "videos", chain.root)
    clips = found["rejection"]["clips"]
    test = [path for path in videos.iterdir() if "P003" in path.name]
    assert (clips["known"], clips["left out"]) == (len([p for p in test if "A001" in p.name]), len([p for p in test if "A002" in p.name]))
    assert clips["foreign"] == 2
    assert clips["idle"] > 0
    json.dumps(found)
    rows = _figures([found])
    assert all(0 <= row.value <= 1 for row in rows if row.value is not None and np.isfinite(row.value))
    assert [row.value for row in rows if row.work == "left out: AUROC of the rule"] == [found["rejection"]["left out"]["auroc"]["rule"]]
    assert found["segments"]["videos"] == 1
    assert np.isfinite(found["segments"]["path"]["mAP@0.5"])


def test_a_command_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").write_text("in the way")
    assert main(["bench", "open_set", "--work", str(tmp_path), "--draws", "1", "--output", str(tmp_path / "found.json")]) == 1
    assert "vtlvlm synth failed" in capsys.readouterr().err
    assert main(["bench", "open_set", "--draws", "-1"]) == 2
    assert main(["bench", "open_set", "--repeats", "3"]) == 2
    assert "bench open_set takes --draws" in capsys.readouterr().err
    assert main(["bench", "data", "--draws", "1"]) == 2
