"""One batch over one, two and four gloo processes: the same loss, gradients and codebook."""

from pathlib import Path

import pytest
import torch
from gloo import in_processes
from torch.nn.parallel import DistributedDataParallel

from vtlvlm.vtem.losses import InfoNCE
from vtlvlm.vtem.quantizers import EMAQuantizer, FactorisedQuantizer

CLIPS, WINDOWS, CELLS, DIM = 8, 6, 2, 5
DRAWS = {"all": {}, "drawn": {"max_anchors": 24, "max_negatives": 40}}


class Contrast(torch.nn.Module):
    """A trained map before the loss, so that gradients pass through the tokens."""

    def __init__(self, **settings: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.loss = torch.nn.Linear(DIM, DIM), InfoNCE(head_dim=4, **settings)
        self.loss.build(DIM)

    def forward(self, vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.loss(self.map(vectors), ids, windows=WINDOWS, seed=5)


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (CLIPS, WINDOWS * CELLS)
    return torch.randn(*shape, DIM, generator=generator), torch.randint(6, shape, generator=generator)


def contrast(rank: int, ranks: int, name: str) -> dict[str, torch.Tensor]:
    model = Contrast(**DRAWS[name])
    vectors, ids = (column[rank::ranks] for column in clips())
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    loss = wrapped(vectors, ids)
    loss.backward()
    mean = loss.detach().clone()
    if ranks > 1:
        torch.distributed.all_reduce(mean)
    return {"loss": mean / ranks, **{name: parameter.grad for name, parameter in model.named_parameters()}}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_contrast_and_its_gradient_are_those_of_one_process(name: str, ranks: int, tmp_path: Path) -> None:
    alone = contrast(0, 1, name)
    for found in in_processes(contrast, tmp_path, ranks, name, ranks=ranks):
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def codebooks(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    found = {}
    for name, quantizer in {
        "ema": EMAQuantizer(codes=12, decay=0.7, dead_code_threshold=0.6),
        "factorised": FactorisedQuantizer(codes=12, code_dim=3, decay=0.7, dead_code_threshold=0.6),
    }.items():
        torch.manual_seed(0)
        quantizer.build(DIM)
        quantizer.initialise(torch.randn(200, DIM, generator=torch.Generator().manual_seed(0)))
        start = quantizer.table().clone()
        for step in range(15):
            vectors = clips()[0].roll(step, 0)[rank::ranks] + 0.3 * step  # they move away, so that codes die
            quantizer.update(vectors, quantizer.train()(vectors).ids, seed=step)
        found |= {name: quantizer.table(), f"{name} size": quantizer.vq._codebook.cluster_size, f"{name} start": start}
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_codebook_and_revived_codes_are_those_of_one_process(ranks: int, tmp_path: Path) -> None:
    alone = codebooks(0, 1)
    first, *others = in_processes(codebooks, tmp_path, ranks, ranks=ranks)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(first[key], other[key]) for other in others), key
    assert not torch.allclose(alone["ema"], alone["ema start"], atol=0.5)
