import json
from pathlib import Path

import pytest

from vtlvlm.bench import data
from vtlvlm.cli import main


def test_all_figures_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_data: Path) -> None:
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    for name, value in {"WIDTH": 192, "HEIGHT": 108, "SECONDS": 2, "SIZE": 64, "CLIPS": 500, "GROWTH_OPENS": 10, "LANGUAGE": tiny}.items():
        monkeypatch.setattr(data, name, value)
    output = tmp_path / "bench.json"
    assert main(["bench", "data", "--videos", str(test_data / "clips"), "--repeats", "1", "--output", str(output)]) == 0
    rows = {row["work"]: row for row in json.loads(output.read_text())["rows"]}
    assert len([work for work in rows if "over decode-only" in work]) == 2
    on_gpu = [row for work, row in rows.items() if "decoded on the GPU" in work]
    assert len(on_gpu) == 2
    assert all((row["value"] is None) == ("data.source.decoder" in row["note"]) for row in on_gpu)  # measured, or refused in words
    assert all(row["value"] is None or row["value"] > 0 or "growth" in work for work, row in rows.items())
    assert len([work for work in rows if work.startswith(".skeleton file of")]) == 2
    assert rows["event cache of 500 clips x 256 ids: the ids"]["value"] == pytest.approx(500 * 256 * 2 / 1e6, rel=0.01)


def test_rendered_clips_where_there_are_no_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTH": 96, "HEIGHT": 54, "SECONDS": 1}.items():
        monkeypatch.setattr(data, name, value)
    clips = data.camera_clips(tmp_path, None)
    assert [data.decode_only(file) for file in clips.values()] == [30, 30]


def test_a_folder_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    assert main(["bench", "data", "--videos", str(tmp_path), "--output", str(tmp_path / "b.json")]) == 1
    assert "no video in it can be decoded" in capsys.readouterr().err
