from pathlib import Path

import pytest
from tiny import tiny_llava

from vtlvlm.ablation.cost import Estimate, cost_table, keep_duration
from vtlvlm.ablation.items import Item
from vtlvlm.ablation.operations import Load, operations
from vtlvlm.system.files import write_json


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three layers of width 32, with 48 hidden units, 4 heads over 2 pairs of keys and values of width 8, and their vocabulary."""
    return str(tiny_llava(tmp_path_factory.mktemp("llava") / "llava"))


TOKENS, WIDTH, HIDDEN, LAYERS = 10, 32, 48, 3
LAYER = 2 * TOKENS * (WIDTH * WIDTH * 2 + WIDTH * 16 * 2 + WIDTH * HIDDEN * 3)
"""Multiplications and additions of a layer's products: queries and outputs, keys and values, the three matrices of its MLP"""
ATTENTION = 2 * 2 * TOKENS * TOKENS * WIDTH
"""Of scores and weighted sums over all pairs of tokens"""


def counted(llava: str, adapter: str, layers: str = "", projector: bool = False) -> int:
    found = operations(Load(llava, TOKENS, adapter, layers, projector))
    assert found is not None
    return found


def test_operations_by_hand(llava: str) -> None:
    """Forward through all layers; backward to their inputs from the lowest trained one up; with trained weights twice as much."""
    below = counted(llava, "DeepPrompts", "last:1"), counted(llava, "DeepPrompts", "last:2")
    one = below[1] - below[0]  # the backward pass of one layer
    assert LAYER + 2 * ATTENTION <= one <= LAYER + 3 * ATTENTION  # the kernel may compute the scores again
    whole = counted(llava, "DeepPrompts", "all")
    assert whole - below[1] == one
    assert whole == counted(llava, "LoRA") == counted(llava, "DeepPrompts", "last:1", projector=True)
    assert counted(llava, "FullFineTuning") - whole >= (LAYERS - 0.01) * LAYER


def test_a_llava_that_is_not_here_is_not_counted(tmp_path: Path) -> None:
    assert operations(Load(str(tmp_path), TOKENS, "LoRA", "", False)) is None


def training(work: Path, name: str, arm: str, steps: int, **more: object) -> Item:
    return Item(f"stage2/{name}", "fit2", work / name, ("fit",), (), f"{arm}, xsub60, seed 0", steps, 8, **more)  # type: ignore[arg-type]


def finished(item: Item, seconds: float) -> None:
    session = {"first_step": 0, "last_step": item.steps, "epochs": 1, "wall_seconds": seconds, "finished": True}
    costs = {"steps": item.steps, "wall_seconds": seconds, "seconds_per_step": 1.0, "peak_rss_bytes": 1, "parameters": 1}
    write_json(item.folder / "fit.json", {**costs, "trainable_parameters": 1, "sessions": [session]})


def test_hours_come_from_runs_already_made(tmp_path: Path) -> None:
    done, other = training(tmp_path, "a", "full", 10), training(tmp_path, "b", "lora", 10)
    finished(done, 100.0)
    finished(other, 400.0)
    left = [training(tmp_path, "c", "full", 20), training(tmp_path, "d", "lora", 20), training(tmp_path, "e", "new", 20)]
    tested = Item("stage2/c/test", "test", tmp_path / "c", ("test",))
    estimate = Estimate(tmp_path, [done, other, *left])
    assert [estimate.seconds(item) for item in left] == [200.0, 800.0, 500.0]  # the same arm, else the stage
    assert estimate.seconds(tested) is None
    assert Estimate(tmp_path, left).seconds(left[0]) is None
    for seconds in (10.0, 30.0, 20.0):
        keep_duration(tmp_path, "test", seconds)
    keep_duration(tmp_path, "fit2", 999.0)
    assert Estimate(tmp_path, []).seconds(tested) == 20.0
    assert Estimate(tmp_path, []).seconds(left[0]) is None


def test_a_table_of_costs(tmp_path: Path, llava: str) -> None:
    load = Load(llava, TOKENS, "LoRA", "", False)
    left = [training(tmp_path, name, "full", 20_000_000, load=load) for name in "ab"]
    text = cost_table([*left, Item("x", "test", tmp_path / "x", ("test",))], Estimate(tmp_path, []))
    row = next(line for line in text.splitlines() if line.startswith("train stage 2"))
    assert row.split()[3:6] == ["2", "40,000,000", "320,000,000"]
    flops = operations(load)
    assert flops is not None
    assert f"{320_000_000 * flops / 1e12:,.0f} TFLOP" in row
    assert "no such run yet" in row
    assert text.endswith("3 commands; no durations yet")
    keep_duration(tmp_path, "test", 90.0)
    assert cost_table(left, Estimate(tmp_path, [])).endswith("no durations yet")
    rest = cost_table([*left, Item("x", "test", tmp_path / "x", ("test",))], Estimate(tmp_path, []))
    assert rest.endswith("3 commands; 1 min 30 s for 1 of them, from the durations in this work folder")
