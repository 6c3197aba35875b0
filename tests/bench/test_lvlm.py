import json
from pathlib import Path

import pytest
from tiny import tiny_llava

from vtlvlm.bench import lvlm, paper_size, prompt_training, stored_states
from vtlvlm.cli import main

SMALL = {"EVENTS": 6, "NAMES": {5: (1e3, 0.0), 8: (1e3, 0.0)}, "PART": 20}
TRAINING = {"CLIPS": 2, "EVENTS": 6, "PROMPTS": 3, "NAMES": 5, "WIDE_EVENTS": 6, "WIDE_LAYERS": 2, "WIDE_WORDS": 500}
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 32, "num_attention_heads": 4, "vocab_size": 500}


def test_trained_numbers_are_those_of_the_paper() -> None:
    assert [(figure.value, figure.holds) for figure in lvlm.trained_numbers()] == [(1_179_648, True), (4_194_304, True)]


def test_all_figures_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miniature LLaVA instead of the composed one; what is equal is equal there too."""
    for name, value in SMALL.items():
        monkeypatch.setattr(lvlm, name, value)
    for name, value in {**TRAINING, "LLAVA": NARROW}.items():
        monkeypatch.setattr(prompt_training, name, value)
    for name, value in {"EVENTS": 6, "NAMES": 5, "PROMPTS": 3, "LAYERS": "last:1"}.items():
        monkeypatch.setattr(stored_states, name, value)
    monkeypatch.setattr(lvlm, "compose", tiny_llava)
    monkeypatch.setattr(paper_size, "NAMES", {})  # test_paper_size.py
    output = tmp_path / "b.json"
    assert main(["bench", "lvlm", "--repeats", "2", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert len(found["rows"]) == 2 * 6 + 10 + 3 + 2
    training = found["rows"][12:22]
    assert [row["holds"] for row in training if row["unit"] == "nats"] == [True]  # peft's loss
    assert [row["holds"] for row in training if "difference of a gradient" in row["work"]] == [True]
    assert [row["value"] for row in training if row["unit"] == "MB"] == [pytest.approx(3 * (2 * 9 * 3 * 32 * 4) / 1e6, abs=0.02)]
    faster, apart, size = found["rows"][22:25]
    assert faster["value"] > 0
    assert apart["holds"]
    assert size["value"] > 0
    for differences, ranks, *times in (found["rows"][:6], found["rows"][6:12]):
        assert differences["holds"]
        assert ranks["value"] == 0
        assert all(row["value"] > 0 for row in times)
    assert [sizes["names"] for sizes in found["tokens"]] == [5, 8]
    assert all(sizes["context"] > 6 and sizes["nodes"] > sizes["names"] for sizes in found["tokens"])


def test_more_rounds_than_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each label still has its pass; rounds without one do not count."""
    for name, value in SMALL.items():
        monkeypatch.setattr(lvlm, name, value)
    figures, _ = lvlm.label_scores(tiny_llava(tmp_path / "llava"), 7)
    assert all(figure.value is not None and figure.value >= 0 for figure in figures)
    assert [figure.value for figure in figures[1::6]] == [0, 0]
