"""The report of runs that the pipeline itself has made."""

from pathlib import Path

from pipeline import Pipeline

from vtlvlm.cli import main


def test_runs_of_the_pipeline(chain: Pipeline, tmp_path: Path) -> None:
    assert main(["report", str(chain.folder / "run2"), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Stage 2: xsub60, 2 test clips" in text
    assert "DeepPrompts" in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"runs-1-1-confusion.png", "runs-1-1-calibration.png"}
    assert (tmp_path / "tables" / "provenance.csv").read_text().count("\n") == 2
