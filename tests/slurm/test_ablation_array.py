"""A grid as job arrays on a real Slurm: `vtlvlm ablate --slurm` runs it, and again prints its table."""

from pathlib import Path

import pytest
import yaml
from chain import Clips
from cluster import Cluster, wait

from vtlvlm.cli import main

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def test_a_grid_of_two_arms(cluster: Cluster, clips: Clips, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "four_codes.yaml").write_text("model: {init_args: {quantizer: {init_args: {codes: 4}}}}\n")
    arms = [{"name": "full"}, {"name": "four_codes", "stage1": "four_codes.yaml"}]
    grid = tmp_path / "grid.yaml"
    stages = {"stage1": str(clips.pipeline.stage1), "stage2": str(clips.pipeline.stage2)}
    grid.write_text(yaml.safe_dump({"title": "Tiny", **stages, "arms": arms}))
    words = ["ablate", str(grid), "--work", str(tmp_path / "work"), "--slurm", "--site", str(clips.site)]
    assert main(words) == 0, capsys.readouterr().err
    said = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert all("submitted" in said[kind] for kind in ("extract", "fit1", "tokenize", "fit2", "test"))
    assert main(words) == 0
    again = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert {kind: row[0] for kind, row in again.items()} == {kind: row[0] for kind, row in said.items()}  # nothing twice
    wait(lambda: not cluster("squeue", "--noheader").strip(), 900, "the arrays to end", every=1)
    assert main(words) == 0, "\n".join(path.read_text()[-2000:] for path in (tmp_path / "work" / "logs").glob("*.out"))
    out = capsys.readouterr().out
    assert "submitted" not in out
    assert "four_codes" in out
