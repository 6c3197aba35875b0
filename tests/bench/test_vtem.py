import json
from pathlib import Path

import pytest
import torch

from vtlvlm.bench import vtem
from vtlvlm.cli import main
from vtlvlm.vtem.extractors import VideoExtractor


def test_what_is_kept_for_the_backward_pass() -> None:
    x = torch.randn(100, requires_grad=True)
    assert vtem.saved_bytes(lambda: (x.exp() * 2).sum()) == 400  # exp keeps its result, once
    assert vtem.saved_bytes(lambda: x.square().sum()) == 400


def test_flops_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    monkeypatch.setattr(vtem, "LLAVA", shape)
    n = 256 + 10
    a_layer = 4 * 64 * 64 + 3 * 64 * 128  # attention's four products and the MLP's three
    expected = 2 * n * 2 * a_layer + 2 * 2 * 2 * n * n * 64 + 2 * 64 * 100 + 2 * 256 * (1024 + 64) * 64
    assert vtem.llava_flops(10) == expected


def test_a_backbones_flops_are_those_its_library_names() -> None:
    from torchvision.models import get_model_weights

    named = get_model_weights("r3d_18").DEFAULT.meta["_ops"]  # 1e9 multiply-adds of 16 frames at 112
    assert vtem.vtem_flops(VideoExtractor("r3d_18", grid=1, image_size=112), 16) / 2e9 == pytest.approx(named, rel=0.02)


def test_all_figures_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"WIDTH": 32, "CODES": 16, "DIM": 768, "CELLS": 16, "WINDOWS": 2, "STEPS": 4, "BATCH": 2, "LONG_STEPS": 500, "STEP_CLIPS": 10}
    for name, value in sizes.items():
        monkeypatch.setattr(vtem, name, value)
    monkeypatch.setattr(vtem, "shares", list)
    output = tmp_path / "b.json"
    assert main(["bench", "vtem", "--repeats", "1", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 6
    assert all(row["value"] >= 0 for row in rows)
