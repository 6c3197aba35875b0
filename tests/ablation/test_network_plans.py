"""Arms that are recognition networks: their items, keys, rates, costs, and jobs."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from moves import write_moves

from vtlvlm.ablation.cluster import jobs
from vtlvlm.ablation.cost import Estimate, cost_table, planned_steps
from vtlvlm.ablation.grid import read_grid
from vtlvlm.ablation.items import Item
from vtlvlm.ablation.network_cost import NetworkLoad, network_operations
from vtlvlm.ablation.plan import Planner
from vtlvlm.ablation.planned import Machine, Plan
from vtlvlm.ablation.settings import Resolver, data_section, key_of, network_settings, put
from vtlvlm.configs import config
from vtlvlm.errors import UsageError
from vtlvlm.system.files import write_json

Write = Callable[..., Path]
SMALL = "baselines/ctr_gcn_small.yaml"
RATE = "model.init_args.optimizer.learning_rate"
CTR = {"name": "ctr", "recognition": SMALL}
ST = {"name": "st", "recognition": "baselines/st_gcn_small.yaml"}


@cache
def resolver() -> Resolver:
    return Resolver()


@pytest.fixture
def networks(tmp_path: Path) -> Write:
    """Writes a grid of networks alone: CTR-GCN and ST-GCN, unless other arms are given."""

    def grid(name: str = "networks", **more: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"arms": [CTR, ST], **more}))
        return path

    return grid


def planner(grid: Path, work: Path, **more: Any) -> Planner:
    return Planner(read_grid(grid), Machine(work, **more), resolver())


def of_kind(plan: Plan, kind: str) -> list[Item]:
    return [item for item in plan.items.values() if item.kind == kind]


def value(item: Item, option: str) -> str:
    return item.arguments[item.arguments.index(option) + 1]


def test_a_network_is_a_training_and_a_test(networks: Write, tmp_path: Path) -> None:
    plan = planner(networks(seeds=[4, 5], folds=["cameras:1"]), tmp_path / "work", recordings=tmp_path / "moves.npz").plan()
    assert len(plan.items) == 8
    run = plan.runs["ctr"][1]
    tested = plan.items[run.final or ""]
    (fitted,) = (plan.items[name] for name in tested.needs)
    assert (fitted.kind, fitted.arguments[0], tested.arguments[0]) == ("network", "fit", "test")
    assert value(fitted, "--config") == config(SMALL)
    assert [value(fitted, f"--{name}") for name in ("seed_everything", "data.source.protocol")] == ["5", "cameras:1"]
    assert value(fitted, "--data.source.root") == str(tmp_path / "moves.npz")
    assert value(tested, "--ckpt_path") == str(fitted.folder / "checkpoints" / "best.ckpt")
    assert (run.recognition, run.stage1, run.stage2) == (f"recognition/{fitted.folder.name}", None, None)
    assert (plan.protocol, fitted.batch, fitted.subject) == ("cameras:1", 16, "ctr, cameras:1, seed 5")
    assert plan.settings["ctr"] == {"method": "CTR-GCN", "reads": "3D skeleton", "stream": "joint"}
    without = planner(networks(validation=0), tmp_path / "work").plan()
    assert value(of_kind(without, "test")[0], "--ckpt_path").endswith("last.ckpt")  # nobody validates
    assert value(of_kind(without, "network")[0], "--data.source.root") == str(Path("data/nw_ucla.npz").absolute())


def test_networks_and_stages_in_one_grid(write: Write, tmp_path: Path) -> None:
    """Ours reads the rendered videos, the networks the recordings that the drawn bodies play; nothing of ours changes."""
    motion = {"motion": str(tmp_path / "moves.npz"), "seed": 3}
    plan = planner(write(arms=[CTR, {"name": "full"}], videos=motion, folds=["cameras:1,2"]), tmp_path / "work").plan()
    (rendered,) = of_kind(plan, "synth")
    assert rendered.arguments == ("synth", str(rendered.folder), "--motion", str(tmp_path / "moves.npz"), "--seed", "3")
    (network,) = of_kind(plan, "network")
    assert network.needs == ()
    assert value(network, "--data.source.root") == str(tmp_path / "moves.npz")
    assert value(of_kind(plan, "fit1")[0], "--data.source.root") == str(rendered.folder)
    assert rendered.name in of_kind(plan, "extract")[0].needs
    alone = planner(write(arms=[{"name": "full"}], videos=motion, folds=["cameras:1,2"]), tmp_path / "work").plan()
    assert alone.items.items() <= plan.items.items()
    elsewhere = planner(
        write(arms=[CTR, {"name": "full"}], videos=motion, folds=["cameras:1,2"]), tmp_path, videos=tmp_path, recordings=tmp_path / "r"
    ).plan()
    assert not of_kind(elsewhere, "synth")  # videos that are there
    assert value(of_kind(elsewhere, "network")[0], "--data.source.root") == str(tmp_path / "r")


def test_each_person_of_the_recordings_is_left_out(networks: Write, tmp_path: Path) -> None:
    file = write_moves(tmp_path / "moves.npz")
    plan = planner(networks(folds="each person"), tmp_path / "work", recordings=file).plan()
    assert [run.fold for run in plan.runs["st"]] == [f"leave_out:P00{person}" for person in (1, 2, 3, 4)]
    assert plan.protocol == "leave_out"


def test_a_network_starts_from_another(networks: Write, tmp_path: Path) -> None:
    first = {"name": "first", "recognition": "baselines/koopman_small.yaml"}
    files = ["baselines/koopman_small.yaml", "baselines/koopman_second.yaml"]
    second = {"name": "second", "recognition": files, "init_from": "first"}
    rates = {"steps": 3, "choose": [{"setting": RATE, "values": [0.1, 0.2]}]}
    plan = planner(networks(arms=[second, first]), tmp_path / "work").plan()
    (again,), (one,) = of_kind(plan, "network_again"), of_kind(plan, "network")
    assert again.needs == (one.name,)
    assert value(again, "--model.init_args.init_from") == str(one.folder / "checkpoints" / "best.ckpt")
    found = {job.name: (job.script, job.after) for job in jobs(list(plan.items.values()), tmp_path)}
    assert found == {
        "network": ("network", ()),
        "network_again": ("network", ("network",)),
        "test": ("ablation", ("network_again", "network")),
    }
    chosen = planner(networks(arms=[second, first], rates=rates), tmp_path / "rated").plan()
    assert list(chosen.trials) == ["first"]  # the second one has its configuration's rate
    assert [run.final for run in chosen.runs["second"]] == [None]  # which waits for the first


def test_rates_of_networks_are_chosen_apart_from_those_of_stage_2(write: Write, tmp_path: Path) -> None:
    rates = {
        "steps": 3,
        "choose": [
            {"setting": RATE, "values": [0.3, 0.4]},
            {"setting": RATE, "values": [0.1, 0.2], "stage": "recognition", "arm": "ctr"},
        ],
    }
    planning = planner(write(arms=[{"name": "full"}, CTR, ST], rates=rates, validation=0.5, folds=["xsub60"]), tmp_path / "work")
    plan = planning.plan()
    assert list(plan.trials) == ["full", "ctr"]
    trials = [plan.items[name] for name in plan.trials["ctr"]]
    assert {item.kind for item in trials} == {"network_trial"}
    assert [value(item, f"--{RATE}") for item in trials] == ["0.1", "0.2"]
    assert [value(trials[0], f"--trainer.{name}") for name in ("max_steps", "max_epochs", "val_check_interval")] == ["3", "null", "3"]
    assert plan.runs["st"][0].final is None  # it takes the rate of ctr
    for item, nll in zip(trials, (2.0, 1.0), strict=True):
        write_json(item.folder / "score.json", {"nll": nll})
    plan = planning.plan()
    assert list(plan.trials) == ["full"]
    assert [plan.runs[name][0].learning_rate for name in ("ctr", "st")] == [0.2, 0.2]
    assert value(plan.items[plan.runs["st"][0].final or ""], f"--{RATE}") == "0.2"
    assert plan.runs["full"][0].final is None


def test_what_a_key_of_a_network_depends_on() -> None:
    base = resolver()([Path(config(SMALL))])

    def key(name: str | None = None, number: Any = 7, seed: int = 0) -> str:
        changed = resolver()([Path(config(SMALL))])
        if name is not None:
            put(changed, name, number)
        return key_of(network_settings(changed, seed))

    assert data_section(base)["repeats"] == 5
    same = ("trainer.devices", "trainer.accelerator", "data.init_args.num_workers", "data.init_args.source.root")
    assert {key(name) for name in same} == {key()}
    data = ("batch_size", "micro_batch_size", "repeats", "stream", "source.protocol", "source.validation")  # batch norms see a micro-batch
    other = (*(f"data.init_args.{name}" for name in data), "trainer.max_epochs", RATE, "model.init_args.network.init_args.widths")
    assert len({key(), key(seed=1), *map(key, other)}) == 2 + len(other)


@pytest.mark.parametrize(
    ("arms", "line"),
    [
        ([{"name": "a", "recognition": [SMALL, "empty.yaml"]}], "arm a: empty.yaml changes nothing in the network's configuration"),
        (
            [{"name": "a", "recognition": "stage2_small.yaml"}],
            "arm a: stage2_small.yaml is a configuration of PromptTuningModule; `recognition:`",
        ),
        ([CTR, {**CTR, "name": "again"}], "arms ctr and again have the same settings"),
        ([{"name": "a", "recognition": [SMALL, "view.yaml"]}, ST], "protocol xview60 in a and cameras:1,2 in st; name one under `folds:`"),
        ([{"name": "a", "recognition": [SMALL, "nonsense.yaml"]}], "arm a: ctr_gcn_small.yaml, nonsense.yaml: "),
    ],
)
def test_a_configuration_that_cannot_be(networks: Write, tmp_path: Path, arms: list[Any], line: str) -> None:
    (tmp_path / "empty.yaml").write_text("seed_everything: 0\n")
    (tmp_path / "view.yaml").write_text("data: {init_args: {source: {protocol: xview60}}}\n")
    (tmp_path / "nonsense.yaml").write_text("model: {init_args: {widths: 3}}\n")
    with pytest.raises(UsageError, match=re.escape(line)) as error:
        planner(networks(arms=arms), tmp_path / "work")
    assert "\n" not in str(error.value)


def test_a_dry_run_counts_epochs_and_operations(networks: Write, tmp_path: Path) -> None:
    """72 recordings; cameras 1 and 2 have 48, of which one of four people validates: 36, five times each, in whole batches of 16."""
    file = write_moves(tmp_path / "moves.npz")
    plan = planner(networks(validation=0.25), tmp_path / "work", recordings=file).plan()
    ctr, st = of_kind(plan, "network")
    assert planned_steps(ctr) == planned_steps(st) == 13 * (36 * 5 // 16) == 143
    estimate = Estimate(tmp_path, [])
    text = cost_table([ctr, st], estimate)
    row = next(line for line in text.splitlines() if line.startswith("train a network "))
    assert row.split()[3:6] == ["2", "286", f"{286 * 16:,}"]
    flops = [network_operations(item.load) for item in (ctr, st) if isinstance(item.load, NetworkLoad)]
    assert f"{sum(one or 0 for one in flops) * 143 * 16 / 1e12:,.0f} TFLOP" in row
    assert estimate.seconds(ctr) is None
    session = {"first_step": 0, "last_step": 100, "epochs": 1, "wall_seconds": 50.0, "finished": True}
    costs = {"steps": 100, "wall_seconds": 50.0, "seconds_per_step": 0.5, "peak_rss_bytes": 1, "parameters": 1, "trainable_parameters": 1}
    write_json(st.folder / "fit.json", {**costs, "sessions": [session]})
    estimate = Estimate(tmp_path, [ctr, st])
    assert estimate.seconds(st) == 0.5 * 143
    assert estimate.seconds(ctr) is None  # another network tells nothing
    gone = planner(networks(), tmp_path / "work", recordings=tmp_path / "none.npz").plan()
    assert planned_steps(of_kind(gone, "network")[0]) is None
    assert "not counted for 2" in cost_table(of_kind(gone, "network"), Estimate(tmp_path, []))


def test_operations_are_the_known_ones(networks: Write, tmp_path: Path) -> None:
    """CTR-GCN has 0.62 GMACs on 52 frames of 20 joints (counted on the official module); backward costs about twice the forward pass."""
    file = write_moves(tmp_path / "moves.npz")
    arm = {"name": "ctr", "recognition": ["baselines/ctr_gcn.yaml", "baselines/nw_ucla.yaml"]}
    (item,) = of_kind(planner(networks(arms=[arm]), tmp_path / "work", recordings=file).plan(), "network")
    assert isinstance(item.load, NetworkLoad)
    found = network_operations(item.load)
    assert found is not None
    assert 0.9 < found / (3 * 2 * 0.62e9) < 1  # the first layers need no gradient of their input


def test_names_of_runs_with_sgd_are_those_of_before_adamw(tmp_path: Path) -> None:
    """The settings of SGD stand in the configuration without their class, as when there was no other optimiser; AdamW's have theirs."""
    plain = {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "decays": [], "warmup_epochs": 2}
    given = network_settings(resolver()([Path(config(SMALL))]), 0)["model"]["init_args"]["optimizer"]
    assert given == {**plain, "milestones": [9, 12], "minimum": 0.0}
    assert type(given["warmup_epochs"]) is int  # a float has another hash
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {optimizer: {class_path: vtlvlm.stages.sgd.SGD, init_args: {learning_rate: 0.1}}}}")
    assert network_settings(resolver()([Path(config(SMALL)), overlay]), 0)["model"]["init_args"]["optimizer"] == given
    none = tmp_path / "none.yaml"
    none.write_text("model: {class_path: Recognition, init_args: {network: VideoNetwork, head: LinearHead}}\ndata: {source: {root: data}}")
    assert network_settings(resolver()([none]), 0)["model"]["init_args"]["optimizer"] == {
        **plain, "weight_decay": 4e-4, "warmup_epochs": 0, "milestones": [], "minimum": 0.0
    }  # fmt: skip
    swin = resolver()([Path(config("baselines/swin3d_t_finetuned.yaml"))])
    assert swin["model"]["init_args"]["optimizer"]["class_path"] == "vtlvlm.stages.optimizers.AdamW"
    rate = RATE.replace("optimizer", "optimizer.init_args")
    put(swin, rate, 3e-4)
    assert network_settings(swin, 0)["model"]["init_args"]["optimizer"]["init_args"]["learning_rate"] == 3e-4
