"""`study auto` on a trained chain: all six measures come out, and are read again."""

import json
from pathlib import Path

import pytest
from pipeline import Pipeline

from vtlvlm.errors import DataError
from vtlvlm.proxies.document import TITLES, read_measured


@pytest.fixture(scope="module")
def measured(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "out"
    assert chain("study", "auto", chain.run2, folder, "--other", chain.features, "--device", "cpu") == 0
    return folder


def test_all_six_come_out(measured: Path, chain: Pipeline) -> None:
    groups, facts = read_measured(measured / "auto.json")
    assert set(groups) == set(TITLES)
    assert all(groups.values())
    assert (facts["test_clips"], facts["test_people"], facts["codes"], facts["steps"]) == (2, 1, 8, 6)
    assert facts["sentence_mean_weight"] == 0.5
    text = (measured / "report.md").read_text()
    assert all(title in text for title in TITLES.values())
    assert "no person has judged anything here" in text
    assert set(facts["erasure"]["areas"]) == {"S001C001P003R001A001", "S001C001P003R001A002"}


def test_the_same_seed_measures_the_same(measured: Path, chain: Pipeline, tmp_path: Path) -> None:
    assert chain("study", "auto", chain.run2, tmp_path / "out", "--other", chain.features, "--device", "cpu") == 0
    assert json.loads((tmp_path / "out" / "auto.json").read_text()) == json.loads((measured / "auto.json").read_text())


def test_a_second_call_keeps_what_is_there(measured: Path, chain: Pipeline, tmp_path: Path) -> None:
    """Only what is missing is measured; other options measure anew."""
    content = json.loads((measured / "auto.json").read_text())
    content["measures"]["agreement"][0]["value"] = 0.125  # a trace of the first call
    del content["measures"]["coherence"]
    (tmp_path / "auto.json").write_text(json.dumps(content))
    again = ["study", "auto", chain.run2, tmp_path, "--other", chain.features, "--device", "cpu"]
    assert chain(*again) == 0
    found = json.loads((tmp_path / "auto.json").read_text())["measures"]
    assert found["agreement"][0]["value"] == 0.125
    assert found["coherence"] == json.loads((measured / "auto.json").read_text())["measures"]["coherence"]
    assert chain(*again, "--seed", 1, "--clips", 1, "--steps", 2, "--order-clips", 1) == 0
    assert json.loads((tmp_path / "auto.json").read_text())["measures"]["agreement"][0]["value"] != 0.125


def test_measures_stand_in_the_studys_report(measured: Path, chain: Pipeline, tmp_path: Path) -> None:
    tiny = ["--clips", 2, "--raters", 2, "--controls", 0, "--practice", 0, "--checks", 0, "--repeats", 0]
    assert chain("study", "make", chain.run2, tmp_path / "study", *tiny) == 0
    assert chain("study", "report", tmp_path / "study", tmp_path / "report", "--auto", measured / "auto.json") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "No raters yet" in text
    assert all(title in text for title in TITLES.values())


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', '{"format": 1, "measures": {"order": [{}]}, "facts": {}}', '{"format": 1}'])
def test_what_is_no_measure(content: str, tmp_path: Path) -> None:
    (tmp_path / "auto.json").write_text(content)
    with pytest.raises(DataError, match="no measures of `vtlvlm study auto`"):
        read_measured(tmp_path / "auto.json")


def test_what_cannot_be_measured(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain("study", "auto", chain.run1, tmp_path / "out") == 2
    assert "names no event cache" in capsys.readouterr().err
    assert chain("study", "auto", chain.run2, tmp_path / "out", "--clips", 0) == 2
    assert "--clips 0: from 1" in capsys.readouterr().err
    assert chain("study", "auto", chain.run2, tmp_path / "out", "--steps", 9) == 2
    assert "--steps 9: from 2 to 8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
