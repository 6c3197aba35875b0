"""A tiny pipeline and grids over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipeline import Pipeline

IDENTITY = "model: {init_args: {quantizer: {class_path: IdentityQuantizer}}}\n"
UNTUNED = """
model: {init_args: {reasoner: {init_args: {adapter: {class_path: NoAdapter}, train_projector: false, init_projector: keep}}}}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Videos of three people, a LLaVA, weights and both configurations, nothing run."""
    return Pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def write(tiny: Pipeline, tmp_path: Path) -> Callable[..., Path]:
    """Writes a grid over the tiny pipeline: two arms, unless others are given."""
    for name, text in (("identity", IDENTITY), ("untuned", UNTUNED)):
        (tmp_path / f"{name}.yaml").write_text(text)

    def grid(name: str = "grid", **more: Any) -> Path:
        arms = [{"name": "full", "paper": 94.1}, {"name": "identity", "stage1": "identity.yaml"}]
        content = {"title": "Tiny", "stage1": str(tiny.stage1), "stage2": str(tiny.stage2), "arms": arms, **more}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return grid
