"""Cost of every stage: counted at the paper's size, measured on tiny parts."""

import json
from pathlib import Path

import pytest
from pipeline import Pipeline

from vtlvlm.bench import efficiency
from vtlvlm.cli import main
from vtlvlm.report.paper_tables import table_four


def test_the_papers_size_is_counted() -> None:
    rows = {row.stage: row for row in efficiency.paper_rows()}
    nine, everywhere = rows["reason, prompts in 9 layers"], rows["reason, prompts in all 32 layers"]
    assert (nine.trainable_parameters, everywhere.trainable_parameters) == (1_179_648, 4_194_304)
    assert rows["reason, full fine-tuning"].trainable_parameters == 6_759_919_616
    assert nine.flops is not None
    assert everywhere.flops is not None
    per_token = 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11_008))
    assert per_token * (587 + 232) < nine.flops < 1.05 * per_token * (587 + 232)
    assert nine.flops < everywhere.flops < 1.01 * nine.flops
    assert all(row.seconds is None and row.peak_bytes is None for row in rows.values())  # nothing was run


def test_every_stage_of_a_configuration_is_measured(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "FRAMES", 12)
    output = tmp_path / "efficiency.json"
    files = ["--stage1", str(chain.folder / "stage1.yaml"), "--stage2", str(chain.folder / "stage2.yaml")]
    assert main(["bench", "efficiency", *files, "--repeats", "1", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    measured, counted = content["tables"]
    rows = {row["stage"]: row for row in measured["rows"]}
    assert list(rows) == ["decode", "extract", "map to events", "reason", "file to probabilities"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows.pop("decode")["peak_bytes"] is None
    assert all(row["peak_bytes"] > 0 for row in rows.values())
    assert rows["file to probabilities"]["flops"] == sum(rows[name]["flops"] for name in ("extract", "map to events", "reason")) > 0
    fit = json.loads((chain.folder / "run2" / "fit.json").read_text())
    assert rows["reason"]["trainable_parameters"] == fit["trainable_parameters"]
    fit = json.loads((chain.folder / "run1" / "fit.json").read_text())
    assert rows["map to events"]["trainable_parameters"] == fit["trainable_parameters"]
    assert "not run" in counted["title"]
    assert [row[0] for row in table_four(output).tables[0].rows][4:9] == ["decode", *rows]


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, words in (
        (["efficiency", "--stage1", "none.yaml"], "none.yaml: no such configuration"),
        (["efficiency", "--stage1", "stage2_small.yaml"], "--stage1 takes configurations of stage 1"),
        (["efficiency", "--budget", "3"], "--budget: bench efficiency takes"),
        (["efficiency", "--repeats", "0"], "--repeats 0: at least 1"),
        (["vtem", "--stage1", "x"], "--stage1 goes with bench efficiency"),
    ):
        assert main(["bench", *arguments, *(["--output", str(tmp_path / "o.json")] if arguments[0] == "efficiency" else [])]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1, said
