"""A training step of each stage on the device is the CPU's; all forms of label scores are equal; prompts keep flash attention."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reasoners import reasoner_of
from tiny import tiny_llava
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig

from vtlvlm.bench.gpu_cost import TINY, Gpu, Setting
from vtlvlm.bench.gpu_inference import one_by_one
from vtlvlm.bench.gpu_stage1 import Mapper
from vtlvlm.bench.gpu_stage2 import Reader
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts, attention
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.vtem.losses import reconstruction

CLASSES = ("drink water", "drink", "eat meal", "sitting down", "standing up", "clap")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("gpu") / "llava")


def built(llava: Path, device: torch.device, **settings: Any) -> EventReasoner:
    """A reasoner on a device, built there as Lightning builds it; its prompts are the same on each."""
    torch.manual_seed(0)
    prompts = DeepPrompts(tokens=4, layers="last:2", std=1.0)
    reasoner = reasoner_of(str(llava), prompts, Instruction(), **settings)
    with torch.device(device):
        reasoner.build(CLASSES, 6, 16)
    reasoner.to(device).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prompts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return reasoner


def step(reasoner: EventReasoner, vectors: Tensor, labels: Tensor, objective: str, bf16: bool = False) -> tuple[float, Tensor]:
    """Loss, and gradients of the prompts in one row."""
    device = reasoner.context.device
    vectors, labels = vectors.to(device), labels.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        listwise = objective == "listwise"
        loss = F.cross_entropy(reasoner(vectors).score, labels) if listwise else reasoner.generative_loss(vectors, labels)
    found = torch.autograd.grad(loss, list(reasoner.adapter.parameters()))
    return float(loss.detach()), torch.cat([gradient.flatten().cpu() for gradient in found])


def apart(one: Tensor, two: Tensor) -> float:
    """The difference over the size of the first."""
    return float((one - two).norm() / one.norm())


@pytest.mark.parametrize("objective", ["listwise", "generative"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_stage_2_is_the_cpus(device: torch.device, llava: Path, objective: str, checkpointing: bool) -> None:
    vectors, labels = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(2)), torch.arange(4)
    loss, gradients = step(built(llava, CPU), vectors, labels, objective)
    there = built(llava, device, gradient_checkpointing=checkpointing)
    exact, rounded = step(there, vectors, labels, objective), step(there, vectors, labels, objective, bf16=True)
    assert exact[0] == pytest.approx(loss, rel=1e-4)
    assert apart(gradients, exact[1]) < 1e-3
    assert rounded[0] == pytest.approx(loss, rel=0.03)
    assert 1e-6 < apart(gradients, rounded[1]) < 0.15


def stage1_step(mapper: Mapper, bf16: bool = False) -> tuple[float, Tensor, Tensor]:
    """Loss, gradients of all trained weights in one row, and codes."""
    device = mapper.times.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        found = mapper.vtem.encode(mapper.features.to(device), mapper.times)
        ids = found.tokens.ids
        loss = reconstruction(found.reconstruction, found.target) + found.commitment
        loss = loss + 0.1 * mapper.contrast(found.tokens.vectors, ids, windows=TINY.windows)
    trained = [p for p in (*mapper.vtem.parameters(), *mapper.contrast.parameters()) if p.requires_grad]
    return float(loss.detach()), torch.cat([g.flatten().cpu() for g in torch.autograd.grad(loss, trained)]), ids.cpu()


def test_a_step_of_stage_1_is_the_cpus(device: torch.device) -> None:
    """From the same statistics; negatives are not drawn, since a clip has few tokens."""
    here = Mapper(Setting(Gpu(CPU), TINY))
    here.start()
    there = Mapper(Setting(Gpu(device), TINY))
    there.vtem.load_state_dict(here.vtem.state_dict())
    there.contrast.load_state_dict(here.contrast.state_dict())
    there.features = copy.deepcopy(here.features)
    loss, gradients, ids = stage1_step(here)
    for bf16, near, gradient in ((False, 1e-4, 1e-3), (True, 0.02, 0.1)):
        found = stage1_step(there, bf16)
        assert (found[2] == ids).float().mean() >= 0.99
        assert found[0] == pytest.approx(loss, rel=near)
        assert apart(gradients, found[1]) < gradient


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_forms_of_the_scores_are_those_of_one_forward_a_label(device: torch.device, dtype: torch.dtype) -> None:
    reader = Reader(Setting(Gpu(device), TINY), dtype=dtype)
    vectors = reader.events(1)
    expected = one_by_one(reader, vectors)
    assert expected.std() > 0.1
    near = 1e-3 if dtype == torch.float32 else 0.02 * float(expected.abs().mean())
    for form in ("packed", "two_pass", "batched"):
        torch.testing.assert_close(reader.scores(vectors, form), expected, atol=near, rtol=0)


@pytest.mark.parametrize("width", [64, 128])
def test_a_prompt_keeps_flash_attention(device: torch.device, width: int) -> None:
    """The context's attention runs where only the flash kernel is allowed, and is that of a mask that shows the prompt to all."""
    sizes = {"hidden_size": 2 * width, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    prompts = DeepPrompts(tokens=4, std=1.0)
    prompts.build(config)
    prompts.to(device)
    layer = torch.nn.Module()
    layer.deep_prompts, layer.num_key_value_groups, layer.layer_idx = (prompts, 0), 1, 0
    query, key, value = torch.randn(3, 2, 2, 40, width, device=device).bfloat16()
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = attention(layer, query, key, value, None)[0]
    keys, values, _ = prompts.prepend(0, key, value)
    mask = torch.ones(40, 44, dtype=torch.bool, device=device).tril(4)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(query.float(), keys.float(), values.float(), mask).transpose(1, 2)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["listwise", "generative"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_with_ligers_kernels_is_the_cpus(llava: Path, objective: str, checkpointing: bool) -> None:
    pytest.importorskip("liger_kernel")
    vectors, labels = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(2)), torch.arange(4)
    loss, gradients = step(built(llava, CPU), vectors, labels, objective)
    there = built(llava, torch.device("cuda"), kernels="liger", gradient_checkpointing=checkpointing)
    exact, rounded = step(there, vectors, labels, objective), step(there, vectors, labels, objective, bf16=True)
    assert exact[0] == pytest.approx(loss, rel=1e-4)
    assert apart(gradients, exact[1]) < 1e-3
    assert rounded[0] == pytest.approx(loss, rel=0.03)
    assert 1e-6 < apart(gradients, rounded[1]) < 0.15
    again = step(built(llava, CPU), vectors, labels, objective)  # a model that was made without them has none
    assert again[0] == loss
    assert torch.equal(gradients, again[1])


@pytest.mark.gpu
def test_four_bits(llava: Path) -> None:
    """A quantised model is trained by its prompts; its scores resemble those of the whole one. A CPU would need wider rows."""
    pytest.importorskip("bitsandbytes")
    vectors, labels = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(2)), torch.arange(4)
    device = torch.device("cuda")
    loss, gradients = step(built(llava, device, quantization="4bit"), vectors, labels, "listwise")
    whole, exact = step(built(llava, device), vectors, labels, "listwise")
    assert loss == pytest.approx(whole, rel=0.3)
    assert 1e-4 < apart(exact, gradients) < 1
