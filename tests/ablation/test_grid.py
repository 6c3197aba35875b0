from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtlvlm.ablation.grid import Choice, Rendered, read_grid
from vtlvlm.cli import main
from vtlvlm.configs import config, shipped
from vtlvlm.errors import UsageError

Write = Callable[..., Path]
FULL = {"name": "full"}
NETWORK = {"name": "ctr", "recognition": "baselines/ctr_gcn_small.yaml"}
RATE = {"setting": "model.init_args.optimizer.learning_rate", "values": [1.0e-3, 1.0e-2]}


def test_what_a_grid_says(write: Write, tmp_path: Path) -> None:
    grid = read_grid(
        write(
            arms=[
                {**FULL, "label": "the whole", "paper": 94.1},
                {"name": "other", "stage1": ["identity.yaml", "ablations/codes_512.yaml"]},
            ],
            rates={"steps": 5, "choose": [{"setting": "model.init_args.optimizer.learning_rate", "values": [1e-3, 1.0e-2]}]},
            seeds=[3, 4],
            folds=["leave_out:P001", "leave_out:P002"],
            validation=0.2,
        )
    )
    first, second = grid.arms
    assert (first.label, first.paper, first.stage1, second.label) == ("the whole", 94.1, (), "other")
    assert second.stage1 == (tmp_path / "identity.yaml", Path(config("ablations/codes_512.yaml")))
    assert (grid.name, grid.metric, grid.seeds, grid.validation, grid.compare) == ("grid", "top1", (3, 4), 0.2, ("full", "other"))
    assert grid.choices == (Choice("model.init_args.optimizer.learning_rate", (1e-3, 1e-2)),)


def test_an_arm_of_a_network_needs_no_stages(write: Write, tmp_path: Path) -> None:
    """An overlay follows its configuration; rates belong to networks where there is no stage 2."""
    arms = [{**NETWORK, "recognition": [NETWORK["recognition"], "identity.yaml"]}]
    grid = read_grid(write(stage1=None, stage2=None, arms=arms, rates={"steps": 2, "choose": [RATE]}))
    assert grid.arms[0].recognition == (Path(config("baselines/ctr_gcn_small.yaml")), tmp_path / "identity.yaml")
    assert (grid.stage1, grid.stage2, grid.metric) == ((), (), "top1")
    assert [choice.stage for choice in grid.choices] == ["recognition"]
    assert read_grid(write(videos={"motion": "moves.npz"})).videos == Rendered(None, 0, Path("moves.npz"))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"arms": []}, "no arms; list at least one"),
        ({"arms": [FULL, FULL]}, "two arms are called full"),
        ({"arms": [{**FULL, "stage1": "ablations/nonsense.yaml"}]}, "arm full: stage1: ablations/nonsense.yaml: no such configuration"),
        ({"arms": [{**FULL, "sage1": "a.yaml"}]}, "sage1: no such key; there are name, label"),
        ({"arms": [{"name": "a/b"}]}, "name: a/b: expected letters"),
        ({"arms": {"full": {}}}, "arms: expected a list"),
        ({"arms": [{**FULL, "paper": "94"}]}, "full: paper: 94: expected a number in percent"),
        ({"seed": [1]}, "seed: no such key; there are title, table"),
        ({"seeds": [-1]}, "seeds: -1: expected whole numbers from 0"),
        ({"folds": ["xsub60", "xview60"]}, "xsub60 and xview60 in one table"),
        ({"validation": 1}, "validation: 1: expected a share"),
        ({"stage1": None}, "no `stage1:`"),
        ({"stage2": None, "arms": [{**FULL, "stage2": "untuned.yaml"}]}, "has overlays or learning rates of stage 2, but no `stage2:`"),
        ({"arms": [{**NETWORK, "stage1": "identity.yaml"}]}, "arm ctr: a network has no stages"),
        ({"stage2": None, "arms": [FULL, NETWORK]}, "arm ctr is a network, which is tested, and the others end with stage 1"),
        ({"arms": [{**NETWORK, "init_from": "full"}, FULL]}, "arm ctr: init_from: full: a network starts from one of the other networks"),
        ({"arms": [{**NETWORK, "init_from": "ctr"}]}, "arm ctr: init_from: ctr: a network starts"),
        ({"arms": [{**NETWORK, "recognition": "baselines/none.yaml"}]}, "arm ctr: recognition: baselines/none.yaml: no such configuration"),
        ({"arms": [NETWORK], "rates": {"steps": 1, "choose": [{**RATE, "arm": "full"}]}}, "no such arm of stage2; there are none"),
        ({"rates": {"steps": 1, "choose": [{**RATE, "stage": "stage3"}]}}, "stage: stage3: expected stage2 or recognition"),
        ({"videos": {"seed": 1}}, "videos: expected {subjects: N, seed: S}"),
        ({"videos": {"motion": 7}}, "videos: motion: 7: expected a file of recorded skeletons"),
        ({"compare": ["full", "none"]}, "compare: none: no such arm; there are full, identity"),
        ({"videos": {"subjects": 1}}, "videos: expected {subjects: N, seed: S}"),
        ({"composed_llava": "yes"}, "composed_llava: yes: expected true or false"),
        ({"rates": {"steps": 0}}, "rates: steps: 0: expected the optimiser steps"),
        ({"rates": {"steps": 1, "choose": [{"setting": "model.a", "values": [1.0, float("nan")]}]}}, "two or more numbers above 0"),
        ({"rates": {"steps": 1, "choose": [{"setting": "model.a", "values": ["1e-3", 1]}]}}, "YAML reads 1e-3 as text"),
    ],
)
def test_a_mistake_is_one_line(write: Write, more: dict[str, Any], line: str) -> None:
    path = write(**more)
    with pytest.raises(UsageError) as error:
        read_grid(path)
    assert str(error.value).startswith(str(path))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_rates_need_validation_people(write: Write) -> None:
    choose = [{"setting": "model.init_args.optimizer.learning_rate", "values": [1.0, 2.0]}]
    with pytest.raises(UsageError, match="learning rates are chosen on validation people"):
        read_grid(write(validation=0, rates={"steps": 1, "choose": choose}))


def test_files_that_are_no_grids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("arms: [")
    (tmp_path / "text.yaml").write_text("just text")
    work = ["--work", str(tmp_path / "work")]
    for name, line in (
        ("none", "no such grid file"),
        ("broken", "not a readable YAML file (line 1)"),
        ("text", "not a grid: expected settings"),
    ):
        assert main(["ablate", str(tmp_path / f"{name}.yaml"), *work]) == 2
        told = capsys.readouterr().err
        assert line in told
        assert told.count("\n") == 1
    assert not (tmp_path / "work").exists()


GRIDS = sorted(path for path in (shipped() / "experiments").rglob("*.yaml") if path.parent.name != "parts")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_are_read(path: Path) -> None:
    grid = read_grid(path)
    assert grid.title != grid.name
    assert read_grid(path.relative_to(shipped() / "experiments")) == grid
