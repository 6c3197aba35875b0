"""Liger's kernels are refused in a line where they cannot run, and a CPU does without them. ``tests/gpu/test_steps.py`` runs them."""

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, MistralConfig

from vtlvlm.errors import UsageError
from vtlvlm.lvlm import fused
from vtlvlm.lvlm.fused import OnGpu, require_liger
from vtlvlm.lvlm.llava import Llava
from vtlvlm.recognizers.loading import changed_for


@pytest.mark.parametrize(
    ("installed", "gpu", "text", "message"),
    [
        (False, True, LlamaConfig, "pip install 'vtlvlm\\[kernels\\]'"),
        (True, False, LlamaConfig, "sees no CUDA device; leave kernels out"),
        (True, True, MistralConfig, "a-llava: its language model is of type mistral"),
        (True, True, LlamaConfig, None),
    ],
)
def test_what_cannot_take_the_kernels_is_refused(
    installed: bool, gpu: bool, text: type, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "has_liger", lambda: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    config = LlavaConfig(text_config=text())
    if message is None:
        require_liger(config, "a-llava")
        return
    with pytest.raises(UsageError, match=message):
        require_liger(config, "a-llava")


def test_other_kernels_are_refused() -> None:
    with pytest.raises(UsageError, match="kernels 'fast': use torch or liger"):
        Llava("a-llava", kernels="fast")  # type: ignore[arg-type]


def test_a_cpu_rotates_as_transformers_does() -> None:
    rotary = OnGpu(lambda *_, **__: "fused", lambda q, k, **settings: (q, k, settings))
    assert rotary(torch.zeros(1), 2, unsqueeze_dim=1) == (torch.zeros(1), 2, {"unsqueeze_dim": 1})


def test_a_model_made_with_the_kernels_is_loaded_without_them_on_a_cpu() -> None:
    llava = {"class_path": "vtlvlm.lvlm.llava.Llava", "init_args": {"path": "a-llava", "kernels": "liger"}}
    reasoner = {"class_path": "vtlvlm.lvlm.reasoner.EventReasoner", "init_args": {"llava": llava}}
    assert changed_for(reasoner, "cpu", {}) == {"kernels": "torch"}
