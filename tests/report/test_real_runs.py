"""The report of runs that the pipeline itself has made."""

import shutil
from pathlib import Path

from pipeline import Pipeline
from works import run_entry, write_grid

from vtlvlm.cli import main


def test_runs_of_the_pipeline(chain: Pipeline, tmp_path: Path) -> None:
    assert main(["report", str(chain.folder / "run2"), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Stage 2: xsub60, 2 test clips" in text
    assert "DeepPrompts" in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"runs-1-1-confusion.png", "runs-1-1-calibration.png"}
    assert (tmp_path / "tables" / "provenance.csv").read_text().count("\n") == 2


def test_a_grid_of_runs_of_the_pipeline(chain: Pipeline, tmp_path: Path) -> None:
    arms = []
    for name in ("full", "again"):
        shutil.copytree(chain.folder / "run2", tmp_path / "stage2" / name, ignore=shutil.ignore_patterns("checkpoints"))
        arms.append({"name": name, "paper": 94.1, "runs": [run_entry(f"stage2/{name}", 3, fold="xsub60")]})
    write_grid(tmp_path, "table2", arms)
    assert main(["report", str(tmp_path)]) == 0
    table = (tmp_path / "report" / "tables" / "table2.csv").read_text().splitlines()
    assert table[1] == "full,100.0,1,,94.1,,"
    assert table[2].startswith('again,100.0,1,"\'+0.0 [+0.0, +0.0]",94.1,+0.0,')  # no formula
    text = (tmp_path / "report" / "report.md").read_text()
    assert "2 test clips of 2 actions, protocol xsub60" in text
    assert "These clips are not NTU RGB+D" in text
