"""``vtlvlm extract`` as a whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline import Pipeline

from vtlvlm.data.cache import FeatureCache, FeatureCacheWriter
from vtlvlm.stages.feature_extraction import FeatureExtraction


def test_a_batch_is_written_while_the_next_one_is_computed(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, computing has only begun when ``predict_step`` returns: the host would wait for it, and then it for the disk."""
    happened: list[str] = []

    def noted(kind: type, method: str, word: str) -> None:
        original = getattr(kind, method)

        def call(*arguments: Any, **named: Any) -> Any:
            happened.append(word)
            return original(*arguments, **named)

        monkeypatch.setattr(kind, method, call)

    noted(FeatureExtraction, "predict_step", "compute")
    noted(FeatureCacheWriter, "add", "write")
    assert chain("extract", "--config", chain.stage1, "--data.micro_batch_size", 2, "--output", tmp_path / "features") == 0
    batches = happened.count("compute")
    assert batches > 2
    assert happened == ["compute", *["compute", "write"] * (batches - 1), "write"]
    one, two = (FeatureCache.open(folder) for folder in (tmp_path / "features", chain.features))
    names = sorted(set(two.names.tolist()))
    assert len(names) == 6
    torch.testing.assert_close(one.features(one.rows(names)), two.features(two.rows(names)), atol=1e-2, rtol=1e-2)
