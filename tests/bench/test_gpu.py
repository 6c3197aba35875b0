"""``bench gpu``: all of its parts with small models on a CPU, and how it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vtlvlm.bench import gpu
from vtlvlm.bench.gpu import PARTS, Part
from vtlvlm.bench.gpu_cost import PAPER, TINY, Gpu, Setting, flops
from vtlvlm.bench.gpu_stage2 import Reader, stored
from vtlvlm.bench.harness import Measurement
from vtlvlm.cli import main

ON_CPU = Setting(Gpu(torch.device("cpu")), TINY)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_every_part_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.jsonl"
    assert main(["bench", "gpu", "--tiny", "--output", str(file)]) == 0
    head, *rows = lines(file)
    assert (head["bench"], head["tiny"], head["budget"]) == ("gpu", True, 420)
    assert {row["part"] for row in rows} == {part.name for part in PARTS}
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    missing = {row["part"]: row["note"] for row in rows if row["value"] is None}
    assert missing.keys() <= {"Liger"}, missing
    assert all("is not installed" in note for note in missing.values())
    by_work = {row["work"]: row["value"] for row in rows}
    assert by_work["stage 2: gradients with checkpointing, difference over their size"] < 1e-2
    assert by_work["stage 1: codes under bf16 autocast that are those of float32"] == 100
    assert by_work["log P in bfloat16, largest difference to float32"] > 0
    said = capsys.readouterr().out
    assert said.startswith('{"bench": "gpu"')
    assert "0 parts failed" in said
    assert not list(tmp_path.glob("bench-gpu*"))


def raises(setting: Setting, work: Path) -> Iterator[Measurement]:
    yield Measurement("before", 1.0, "s")
    raise RuntimeError("something\nelse")


def works(setting: Setting, work: Path) -> Iterator[Measurement]:
    yield Measurement("after", 2.0, "s")


def lacks(setting: Setting, work: Path) -> Iterator[Measurement]:
    import no_such_package  # type: ignore[import-not-found]

    yield Measurement(str(no_such_package), 1.0, "s")


def test_a_part_that_fails_keeps_its_figures_and_those_of_the_others(tmp_path: Path) -> None:
    parts = (Part("one", 1, raises), Part("two", 1, lacks), Part("three", 1, works))
    file = tmp_path / "gpu.jsonl"
    assert gpu.measure(file, 10, True, parts) == 1
    found = [(row["work"], row["value"], row["note"]) for row in lines(file)[1:]]
    assert found == [
        ("before", 1.0, ""),
        ("one", None, "failed: RuntimeError: something else"),
        ("two", None, "skipped: no_such_package is not installed"),
        ("after", 2.0, ""),
    ]
    assert gpu.measure(file, 10, True, parts[2:]) == 0
    assert len(lines(file)) == 5 + 2  # the file grows


def test_no_part_starts_after_the_budget(tmp_path: Path) -> None:
    parts = (Part("one", 1, works), Part("two", 1, works))
    assert gpu.measure(tmp_path / "gpu.jsonl", 1e-9, True, parts) == 0
    rows = lines(tmp_path / "gpu.jsonl")[1:]
    assert len(rows) == len(parts)
    assert all(row["note"].startswith("skipped: needs ") for row in rows)


def test_the_whole_bench_fits_into_its_budget_by_its_estimates() -> None:
    assert sum(part.seconds for part in PARTS) <= 420


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu"]) == 2
    said = capsys.readouterr().err
    assert "needs a CUDA device" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gpu", "--tiny", "--repeats", "3"], "--repeats: bench gpu takes"),
        (["gpu", "--tiny", "--budget", "0"], "--budget 0"),
        (["gpu", "--tiny", "--budget", "nan"], "--budget nan"),
        (["vtem", "--tiny"], "--tiny: bench vtem takes --repeats, --work and --output"),
        (["vtem", "--budget", "3"], "--budget: bench vtem takes --repeats, --work and --output"),
        (["gpu", "--tiny", "--output", "x.json"], "x.json: name a file that ends in .jsonl"),
        (["gpu", "--tiny", "--output", "other.jsonl"], "other.jsonl: exists and holds no lines of bench gpu"),
    ],
)
def test_options_that_do_not_fit(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text('{"mine": 1}\n')
    assert main(["bench", *given]) == 2
    assert said in capsys.readouterr().err
    assert Path("other.jsonl").read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("names", sorted(PAPER.text))
def test_labels_have_the_paper_s_numbers_of_tokens(names: int) -> None:
    """587 + 232 positions for 60 names, 888 + 453 for 120: context, and nodes of the label tree."""
    reader = Reader(Setting(ON_CPU.gpu, TINY))
    reader.setting = Setting(ON_CPU.gpu, PAPER)
    reader.read(names)
    assert (len(reader.context), len(reader.trie)) == {60: (587, 232), 120: (888, 453)}[names]
    assert reader.trie.num_labels == names


def test_a_step_is_counted_and_changes_the_prompts() -> None:
    reader = Reader(ON_CPU)
    before = [parameter.clone() for parameter in reader.prompts.parameters()]
    step = reader.job(reader.listwise)
    assert flops(step) > flops(lambda: reader.scores(reader.events(2)).detach()) > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, reader.prompts.parameters(), strict=True))


def test_a_step_from_stored_layers_has_the_loss_of_the_whole_step(tmp_path: Path) -> None:
    rows = {row.work: row.value for row in stored(ON_CPU, tmp_path)}
    assert rows["... difference of the loss, over the loss"] == pytest.approx(0, abs=1e-3)
    context, nodes = TINY.events + TINY.text[6][0], TINY.text[6][1]
    assert rows["... stored for a clip"] == (context + nodes) * TINY.llava["hidden_size"] * 2 / 1e6  # bfloat16
