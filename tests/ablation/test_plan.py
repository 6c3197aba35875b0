import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline import Pipeline

from vtlvlm.ablation import settings
from vtlvlm.ablation.grid import read_grid
from vtlvlm.ablation.items import Item
from vtlvlm.ablation.plan import Planner
from vtlvlm.ablation.planned import Machine, Plan, Selection
from vtlvlm.ablation.settings import LATER, Resolver, extraction_settings, key_of, put, training_settings
from vtlvlm.ablation.state import write_state
from vtlvlm.configs import config, shipped
from vtlvlm.data.source import ClipSource
from vtlvlm.errors import UsageError
from vtlvlm.system.files import write_json

Write = Callable[..., Path]


def planner(grid: Path | str, work: Path, **more: Any) -> Planner:
    return Planner(read_grid(Path(grid)), Machine(work, **more), Resolver())


def kinds(plan: Plan) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in plan.items.values():
        found[item.kind] = found.get(item.kind, 0) + 1
    return found


@pytest.fixture(scope="module")
def small_tables() -> dict[str, Planner]:
    resolve = Resolver()
    names = ("table2_small", "table5_small", "table6_small", "prompts_small", "events_small")
    return {name: Planner(read_grid(Path(f"small/{name}.yaml")), Machine(Path("/work")), resolve) for name in names}


def test_tables_share_what_they_can(small_tables: dict[str, Planner]) -> None:
    """One set of videos, features and full model for Tables II, V and VI; ten models of stage 1 and eleven of stage 2."""
    plans = [small_tables[name].plan() for name in ("table2_small", "table5_small", "table6_small")]
    items = {name: item for plan in plans for name, item in plan.items.items()}
    counts = kinds(Plan("", items))
    assert counts == {"synth": 1, "extract": 1, "compose": 1, "fit1": 10, "tokenize": 10, "fit2": 11, "test": 12}
    fulls = {plan.runs["full"][0].stage2 for plan in plans}
    assert len(fulls) == 1
    assert kinds(small_tables["prompts_small"].plan())["fit1"] == 1
    assert small_tables["events_small"].plan().runs["full"][0].stage1 == plans[0].runs["full"][0].stage1
    windows = [found["windows"] for found in plans[1].settings.values()]
    assert windows == [16, 4, 8, 32]


def test_an_arm_of_no_codebook_has_no_number_of_codes(small_tables: dict[str, Planner]) -> None:
    found = small_tables["table2_small"].plan().settings
    assert (found["full"], found["no_quantization"]) == ({"windows": 16, "tokens": 64, "codes": 2048}, {"windows": 16, "tokens": 64})


def test_the_zero_shot_arm_trains_no_stage_2(small_tables: dict[str, Planner]) -> None:
    plan = small_tables["table2_small"].plan()
    tested = plan.items[plan.runs["zero_shot"][0].final or ""]
    assert [plan.items[name].kind for name in tested.needs] == ["tokenize", "compose"]
    assert "--ckpt_path" not in tested.arguments


def test_commands_name_what_they_read(write: Write, tiny: Pipeline, tmp_path: Path) -> None:
    plan = planner(write(arms=[{"name": "full"}], validation=0, seeds=[7]), tmp_path).plan()
    run = plan.runs["full"][0]
    words = {item.kind: list(item.arguments) for item in plan.items.values()}

    def value(kind: str, option: str) -> str:
        return words[kind][words[kind].index(option) + 1]

    assert value("fit1", "--data.features") == value("extract", "--output") == value("tokenize", "--data.features")
    assert value("tokenize", "--ckpt_path") == str(tmp_path / run.stage1 / "checkpoints" / "last.ckpt")  # nobody validates
    assert value("fit2", "--data.events") == value("test", "--data.events") == value("tokenize", "--output")
    assert value("test", "--ckpt_path") == str(tmp_path / str(run.stage2) / "checkpoints" / "last.ckpt")
    assert {value(kind, "--seed_everything") for kind in ("fit1", "tokenize", "fit2", "test")} == {"7"}
    assert value("fit2", "--config") == str(tiny.stage2)
    validated = planner(write(arms=[{"name": "full"}], validation=0.5), tmp_path).plan()
    trained = next(item for item in validated.items.values() if item.kind == "test")
    assert trained.arguments[-1].endswith("best.ckpt")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: {init_args: {event_dim: 16}}", "arm other: other.yaml changes nothing in stage 1"),
        ("trainer: {devices: 2}", "arms full and other have the same settings"),
        ("data: {source: {protocol: xview60}}", "arm other: protocol xview60 beside xsub60 in one table"),
        ("model: {init_args: {evnt_dim: 16}}", "arm other: stage1.yaml, other.yaml: "),
        ("model: [", "arm other: stage1.yaml, other.yaml: "),
    ],
)
def test_an_overlay_that_cannot_be(write: Write, tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        planner(write(arms=[{"name": "full"}, {"name": "other", "stage1": "other.yaml"}]), tmp_path)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"stage2": "baselines/ctr_gcn_small.yaml"},
            "ctr_gcn_small.yaml is a configuration of Recognition; `stage2:` takes one of PromptTuningModule; an arm names it under `recog",
        ),
        ({"stage1": "stage2_small.yaml"}, "stage2_small.yaml is a configuration of PromptTuningModule; `stage1:` takes one of VTEMModule"),
    ],
)
def test_a_configuration_of_something_else(write: Write, tmp_path: Path, more: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        planner(write(arms=[{"name": "full"}], **more), tmp_path / "work")


def test_each_person_is_left_out(write: Write, tmp_path: Path) -> None:
    plan = planner(write(folds="each person", arms=[{"name": "full"}]), tmp_path).plan()
    assert [run.fold for run in plan.runs["full"]] == ["leave_out:P001", "leave_out:P002", "leave_out:P003"]
    assert plan.protocol == "leave_out"
    assert kinds(plan)["extract"] == 1  # all clips train in some fold
    (extract,) = (item for item in plan.items.values() if item.kind == "extract")
    assert extract.arguments[extract.arguments.index("--data.source.protocol") + 1] == "all"


def test_what_a_key_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Resolver()([Path(config("stage2_small.yaml"))])

    def key(name: str | None = None, value: Any = None, seed: int = 0) -> str:
        changed = copy.deepcopy(base)
        if name is not None:
            put(changed, name, value)
        return key_of(training_settings(changed, seed))

    llava = "model.init_args.reasoner.init_args.llava"
    same = ("trainer.devices", "data.num_workers", "data.micro_batch_size", "data.source.root", f"{llava}.gradient_checkpointing")
    assert {key(name, 5) for name in same} == {key()}
    other = ("trainer.max_steps", "data.batch_size", "data.source.protocol", "data.source.validation", f"{llava}.dtype")
    assert len({key(), key(seed=1), *(key(name, 5) for name in other)}) == 2 + len(other)


def test_features_depend_on_the_frames_and_the_extractor_alone() -> None:
    resolve, base = Resolver(), Path(config("stage1_vtem.yaml"))

    def key(*overlays: str) -> str:
        return key_of(extraction_settings(resolve([base, *(Path(config(f"ablations/{name}.yaml")) for name in overlays)]), "", ""))

    assert key() == key("tokens_64") == key("codes_512") == key("no_quantization")
    assert key() != key("tokens_512")  # twice the frames


def test_protocols_over_the_same_clips_share_features(tmp_path: Path) -> None:
    """One view of each clip, whatever side of the split it is on."""
    resolve = Resolver()
    found = {}
    for path in sorted((shipped() / "experiments").glob("table1_ntu*.yaml")):
        plan = Planner(read_grid(path), Machine(tmp_path), resolve).plan()
        (found[path.stem],) = (name for name, item in plan.items.items() if item.kind == "extract")
    assert found["table1_ntu60_xsub"] == found["table1_ntu60_xview"] != found["table1_ntu120_xsub"] == found["table1_ntu120_xset"]


RATE = "model.init_args.optimizer.learning_rate"
SHARED = "model.init_args.projector_learning_rate"


def scored(item: Item, nll: float | None) -> None:
    write_json(item.folder / "score.json", {"nll": nll})


def test_rates_are_chosen_on_validation_people(write: Write, tmp_path: Path) -> None:
    """First the projector's, on one arm for all; then each arm's own, at that rate. A rate that diverges is never the best."""
    rates = {"steps": 3, "choose": [{"setting": SHARED, "values": [0.1, 0.2], "arm": "projector"}, {"setting": RATE, "values": [0.3, 0.4]}]}
    projector = tmp_path / "projector.yaml"
    projector.write_text("model: {init_args: {reasoner: {init_args: {adapter: {class_path: NoAdapter}}}}}")
    arms = [{"name": "full"}, {"name": "projector", "stage2": str(projector)}, {"name": "none", "stage2": "untuned.yaml"}]
    planning = planner(write(arms=arms, rates=rates, validation=0.5), tmp_path / "work")

    def trials(plan: Plan, arm: str) -> list[Item]:
        return [plan.items[name] for name in plan.trials[arm]]

    plan = planning.plan()
    assert list(plan.trials) == ["projector"]
    assert [run.final for run in plan.runs["full"]] == [None]
    assert plan.runs["none"][0].final is not None  # nothing to choose
    only = Selection(frozenset({"full"}))
    assert set(plan.wanted(only)) == set(plan.trials["projector"])  # which every arm waits for
    one, two = trials(plan, "projector")
    assert one.steps == 3
    assert "--trainer.max_steps" in one.arguments
    scored(one, 2.0)
    assert list(planning.plan().trials) == ["projector"]
    scored(two, 1.0)
    plan = planning.plan()
    assert list(plan.trials) == ["full"]
    assert plan.rates["projector"] == {SHARED: 0.2}
    for item, nll in zip(trials(plan, "full"), (5.0, None), strict=True):
        assert item.arguments[item.arguments.index(f"--{SHARED}") + 1] == "0.2"
        scored(item, nll)
    plan = planning.plan()
    assert not plan.trials
    assert plan.runs["full"][0].learning_rate == 0.3
    final = plan.items[plan.runs["full"][0].final or ""]
    assert {final.arguments[final.arguments.index(f"--{name}") + 1] for name in (SHARED, RATE)} == {"0.2", "0.3"}


def test_an_arm_without_an_adapter_tries_no_rate_of_one(write: Write, tmp_path: Path) -> None:
    """Its trials would differ by nothing."""
    projector = tmp_path / "projector.yaml"
    projector.write_text("model: {init_args: {reasoner: {init_args: {adapter: {class_path: NoAdapter}}}}}")
    arms = [{"name": "full"}, {"name": "projector", "stage2": str(projector)}]
    for setting, tried in ((SHARED, ["full", "projector"]), (RATE, ["full"])):
        rates = {"steps": 3, "choose": [{"setting": setting, "values": [0.3, 0.4]}]}
        plan = planner(write(arms=arms, rates=rates, validation=0.5), tmp_path / "work").plan()
        assert list(plan.trials) == tried
        assert (plan.runs["projector"][0].final is None) == ("projector" in tried)


def test_an_arm_that_diverges_at_all_rates_stops_no_other(write: Write, tmp_path: Path) -> None:
    rates = {"steps": 3, "choose": [{"setting": RATE, "values": [0.3, 0.4]}]}
    work = tmp_path / "work"
    grid = read_grid(write(rates=rates, validation=0.5))
    planning = Planner(grid, Machine(work), Resolver())
    plan = planning.plan()
    for name in plan.trials["full"]:
        scored(plan.items[name], None)
    for name in plan.trials["identity"]:
        scored(plan.items[name], 1.0)
    plan = planning.plan()
    assert plan.hopeless == {"full": "arm full: diverges at every learning rate (0.3, 0.4); name lower ones in the grid"}
    assert plan.runs["full"][0].final is None
    assert plan.runs["identity"][0].final is not None
    write_state(work, grid, plan, {})
    full, other = json.loads((work / "grids" / "grid.json").read_text())["arms"]
    assert (full["runs"][0]["status"], full["runs"][0]["reason"]) == ("failed", plan.hopeless["full"])
    assert other["runs"][0]["status"] == "not run"


def test_what_was_resolved_is_kept_until_a_file_or_the_program_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed_everything: 1")
    files, asked = [Path(config("stage1_small.yaml")), file], []
    original = settings._parsed

    def counted(*given: Any) -> Any:
        asked.append(1)
        return original(*given)

    monkeypatch.setattr(settings, "_parsed", counted)

    def seed() -> int:
        resolve = Resolver(tmp_path / "resolved.json")
        found = resolve(files)["seed_everything"]
        resolve.save()
        return int(found)

    assert (seed(), seed(), len(asked)) == (1, 1, 1)
    file.write_text("seed_everything: 2")
    assert (seed(), len(asked)) == (2, 2)
    monkeypatch.setattr(settings, "_program", lambda: "another")
    assert (seed(), len(asked)) == (2, 3)


def test_runs_older_than_a_setting_still_count() -> None:
    """A setting that came later leaves the name of a run as it was, until it is used."""
    config = {"model": {}, "trainer": {}, "data": {"source": {"root": "x", "protocol": "xsub60"}, "seed": 0}}
    younger = {**config, "data": {**config["data"], "source": {**config["data"]["source"], **LATER}}}
    used = {**config, "data": {**config["data"], "source": {**config["data"]["source"], "captions": "captions.csv"}}}
    assert training_settings(younger, 0) == training_settings(config, 0)
    assert training_settings(used, 0) != training_settings(config, 0)
    assert set(LATER) <= set(ClipSource.__dataclass_fields__)
    assert all(ClipSource.__dataclass_fields__[name].default == value for name, value in LATER.items())
