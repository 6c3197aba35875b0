"""What both stages gather from all processes, over gloo."""

from pathlib import Path
from types import SimpleNamespace

import torch
from gloo import in_processes

from vtlvlm.stages.stage import Stage


def gathered(rank: int) -> dict[str, torch.Tensor]:
    stage = SimpleNamespace(trainer=SimpleNamespace(world_size=3), global_rank=rank)
    uneven = torch.arange(6.0).view(3, 2)[:rank] + 10 * rank  # no row of the first rank, one of the second, two of the third
    return {"uneven": Stage.of_all_ranks(stage, uneven), "even": Stage.of_all_ranks(stage, torch.tensor([rank, -rank]))}  # type: ignore[arg-type]


def test_rows_of_ranks_follow_each_other_however_many_each_has(tmp_path: Path) -> None:
    for found in in_processes(gathered, tmp_path, ranks=3):
        assert found["uneven"].tolist() == [[10, 11], [20, 21], [22, 23]]
        assert found["even"].tolist() == [0, 0, 1, -1, 2, -2]


def test_one_process_has_its_own_rows_alone() -> None:
    rows = torch.randn(3, 2)
    assert Stage.of_all_ranks(SimpleNamespace(trainer=SimpleNamespace(world_size=1)), rows) is rows  # type: ignore[arg-type]
