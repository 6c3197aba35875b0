"""Every arm on two gloo processes that see different vectors: 20 steps on, the codebooks are the same to the bit, and not the old ones."""

from pathlib import Path

import torch
from gloo import in_processes
from torch.nn.parallel import DistributedDataParallel

from vtlvlm.vtem.learned_quantizers import LearnedQuantizer, SimVQQuantizer
from vtlvlm.vtem.quantizers import EMAQuantizer, FactorisedQuantizer, FSQQuantizer, Quantizer

RANKS, STEPS, DIM = 2, 20, 8
MAKERS = {
    "ema": lambda: EMAQuantizer(codes=32, decay=0.9, dead_code_threshold=0.5),  # the threshold is high enough for codes to be revived
    "rotation": lambda: EMAQuantizer(codes=32, decay=0.9, rotation=True),
    "factorised": lambda: FactorisedQuantizer(codes=32, code_dim=4, decay=0.9),
    "learned": lambda: LearnedQuantizer(codes=32),
    "simvq": lambda: SimVQQuantizer(codes=32),
    "fsq": lambda: FSQQuantizer(levels=(4, 4, 3)),
}


def trained(name: str, rank: int, vectors: torch.Tensor, autocast: bool) -> tuple[Quantizer, torch.Tensor]:
    """The arm after 20 steps on this rank's vectors, and its table before them."""
    torch.manual_seed(0)
    quantizer = MAKERS[name]()
    quantizer.build(DIM)
    quantizer.initialise(torch.randn(500, DIM), seed=0)
    start = quantizer.table().clone()
    parameters = [p for p in quantizer.parameters() if p.requires_grad]
    model = DistributedDataParallel(quantizer) if parameters else quantizer
    optimizer = torch.optim.Adam(parameters, lr=0.01) if parameters else None
    torch.manual_seed(100 + rank)  # the ranks' own random states differ
    for step in range(STEPS):
        batch = vectors[step].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model.train()(batch)
        loss = (found.vectors - batch.detach()).square().mean() + found.loss
        loss.backward()
        quantizer.update(batch.detach(), found.ids, seed=step)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    return quantizer, start


def work(rank: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(7 + rank)
    vectors = 3 * rank + torch.randn(STEPS, 2, 30, DIM, generator=generator)  # the second rank sees another cloud
    found = {}
    for name in MAKERS:
        for autocast in (False, True):
            quantizer, start = trained(name, rank, vectors, autocast)
            found[f"{name} {autocast}"] = (start, quantizer.table().clone(), dict(quantizer.state_dict()))
    return found


def test_all_arms_stay_equal_on_two_ranks(tmp_path: Path) -> None:
    first, second = in_processes(work, tmp_path)
    assert len(first) == 2 * len(MAKERS)
    for name, (start, table, state) in first.items():
        other_start, other_table, other_state = second[name]
        assert torch.equal(start, other_start), name
        assert torch.equal(table, other_table), name
        assert not torch.equal(start, table), name
        assert table.dtype == torch.float32
        assert state.keys() == other_state.keys()
        assert all(torch.equal(tensor, other_state[key]) for key, tensor in state.items()), name
