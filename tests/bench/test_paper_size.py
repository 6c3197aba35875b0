"""Operations of a training step at the paper's size, counted on the meta device."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtlvlm.bench.paper_size import CLIPS, NAMES, figures, label_tree, paper_reasoner, step_flops
from vtlvlm.lvlm.scoring import score


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", NAMES)
def test_a_step_stays_within_its_operations(names: int) -> None:
    """Frozen layers below the prompts run forward only; checkpointing adds one forward pass of the layers with prompts."""
    plain, again = step_flops(names, False), step_flops(names, True)
    assert 0.8 * NAMES[names].most < plain / 1e12 <= NAMES[names].most
    assert 0.8 * NAMES[names].most_checkpointed < again / 1e12 <= NAMES[names].most_checkpointed
    assert 1.12 < again / plain < 1.2
    assert 0.8 * NAMES[names].most_stored < step_flops(names, False, stored=True) / 1e12 <= NAMES[names].most_stored


def test_attention_is_counted() -> None:
    """In our kernel too, for context and tree: in the 32 layers, two products of width 4,096 for each pair."""
    size, tree = NAMES[60], label_tree(60, NAMES[60].nodes)
    assert (len(tree), tree.num_labels, tree.tokens.device.type) == (size.nodes, 60, "meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counting:
        score(paper_reasoner(False).base, torch.empty(CLIPS, size.context, 4096, dtype=torch.bfloat16, device="meta"), tree)
    counts = counting.get_flop_counts()["Global"]
    attention = sum(count for op, count in counts.items() if "attention" in str(op) or str(op) == "aten.bmm")
    pairs = [(size.context + p) ** 2 + size.nodes * (size.context + size.nodes + p) for p in (0, 16)]
    assert attention == pytest.approx(CLIPS * 4 * 4096 * (23 * pairs[0] + 9 * pairs[1]), rel=0.01)


def test_figures_meet_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtlvlm.bench.paper_size.NAMES", {60: NAMES[60]})
    found = list(figures())
    assert len(found) == 3
    assert all(figure.holds for figure in found)
