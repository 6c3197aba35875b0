"""Stage 2 on event sentences that need no stage 1: objectives, temperature, resuming, what goes in, what is exported."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from events import EventRun
from lightning import Trainer
from modules import data_of
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from pixels import PixelExtractor
from reasoners import placed, reasoner_of
from tiny import tiny_llava
from torch import Tensor

from vtlvlm.batches import EventBatch, FeatureBatch, VideoBatch
from vtlvlm.data.cache import EventCache
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_llava
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem import EMAQuantizer, IdentityQuantizer, InfoNCE, Quantizer, UniformPooler

MODEL = "--model.init_args"
PROMPTS = f"{MODEL}.reasoner.init_args.adapter.init_args"
LEVELLED = [f"{MODEL}.reasoner.init_args.label_score", "pmi"]  # the tiny model's labels are then not twenty nats apart


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    """A run with its test, its validation and its predictions."""
    run = EventRun(tmp_path_factory.mktemp("trained"))
    assert run("fit", *LEVELLED, f"{MODEL}.optimizer.learning_rate", 0.1, "--trainer.max_epochs", 6) == 0
    for command in ("test", "validate", "predict"):
        assert run(command, *LEVELLED, "--ckpt_path", best(run)) == 0
    return run


def best(run: EventRun, name: str = "run") -> Path:
    return run.folder / name / "checkpoints" / "best.ckpt"


def metrics(run: EventRun, split: str = "", name: str = "run") -> dict[str, float]:
    return json.loads((run.folder / name / f"metrics{split}.json").read_text())["metrics"]


def scores_of(run: EventRun, people: tuple[str, ...]) -> tuple[PromptTuningModule, Tensor, Tensor]:
    """The best weights' scores of some people's clips, and the labels, past data module and trainer."""
    module, cache = PromptTuningModule.load_from_checkpoint(best(run)), EventCache.open(run.events)
    names = sorted({name for name in cache.names.tolist() if name[8:12] in people})
    with torch.inference_mode():
        scores = module.reasoner(cache.vectors(cache.rows(names)).float()).score
    return module, scores, torch.tensor([int(name.endswith("A002")) for name in names])


def test_the_checkpoint_holds_the_temperature_of_its_own_weights(trained: EventRun) -> None:
    """Against a grid over the validation people's scores, taken from the checkpoint alone."""
    people = json.loads((trained.folder / "run" / "metrics.json").read_text())["provenance"]["split"]["groups"]["val"]
    module, scores, labels = scores_of(trained, tuple(f"P{person:03}" for person in people))
    assert len(labels) == 4
    grid = torch.linspace(-math.log(100), math.log(100), 6001, dtype=torch.float64).exp()
    costs = torch.stack([F.cross_entropy(scores.double() / t, labels, reduction="sum") + t.log() ** 2 / 2 for t in grid])
    temperature = float(module.reasoner.temperature)
    assert temperature == pytest.approx(float(grid[costs.argmin()]), rel=2e-3)
    assert abs(temperature - 1) > 0.05
    found = metrics(trained, "_val")
    assert found["temperature"] == pytest.approx(temperature)
    assert found["nll"] == pytest.approx(float(F.cross_entropy(scores, labels)), abs=1e-5)
    assert found["nll_calibrated"] == pytest.approx(float(F.cross_entropy(scores / temperature, labels)), abs=1e-5)
    assert found["nll_calibrated"] < found["nll"]


def test_test_and_predict_use_it_and_name_the_same_actions(trained: EventRun) -> None:
    module, scores, labels = scores_of(trained, ("P003", "P006"))
    temperature = float(module.reasoner.temperature)
    found = metrics(trained)
    assert found["temperature"] == pytest.approx(temperature)
    assert found["nll"] == pytest.approx(float(F.cross_entropy(scores, labels)), abs=1e-5)
    assert found["nll_calibrated"] == pytest.approx(float(F.cross_entropy(scores / temperature, labels)), abs=1e-5)
    brier = ((scores / temperature).softmax(-1) - F.one_hot(labels, 2)).square().sum(-1).mean()
    assert found["brier_calibrated"] == pytest.approx(float(brier), abs=1e-5)
    assert found["brier_calibrated"] != found["brier"]
    assert found["top1"] == pytest.approx(float((scores.argmax(-1) == labels).float().mean()))
    rows = [row for row in csv.DictReader((trained.folder / "run" / "predictions.csv").open()) if row["clip"][8:12] in ("P003", "P006")]
    listed = torch.tensor([[float(row[name]) for name in module.classes] for row in sorted(rows, key=lambda row: row["clip"])])
    torch.testing.assert_close(listed, (scores / temperature).softmax(-1), atol=2e-6, rtol=0)
    assert torch.equal(listed.argmax(-1), scores.argmax(-1))


def test_a_step_takes_the_temperature_back(trained: EventRun) -> None:
    module = PromptTuningModule.load_from_checkpoint(best(trained))
    assert module.reasoner.temperature != 1
    module.on_before_optimizer_step(None)
    assert module.reasoner.temperature == 1


def test_no_temperature_without_validation_people_or_where_it_is_switched_off(trained: EventRun) -> None:
    for name, more in {"off": [f"{MODEL}.calibrate", "false"], "nobody": ["--data.source.validation", 0]}.items():
        assert trained("fit", *more, run=name) == 0
        assert trained("test", *more, "--ckpt_path", trained.folder / name / "checkpoints" / "last.ckpt", run=name) == 0
        found = metrics(trained, name=name)
        assert found["temperature"] == 1
        assert found["nll_calibrated"] == found["nll"]


def test_the_generative_objective_trains_and_is_evaluated_like_the_other(trained: EventRun) -> None:
    assert trained("fit", *LEVELLED, f"{MODEL}.objective", "generative", run="generative") == 0
    assert trained("test", *LEVELLED, "--ckpt_path", best(trained, "generative"), run="generative") == 0  # its configuration says listwise
    assert metrics(trained, name="generative").keys() == metrics(trained).keys()
    one, two = (torch.load(best(trained, name), weights_only=True)["state_dict"] for name in ("run", "generative"))
    assert one.keys() == two.keys()
    assert not torch.equal(one["reasoner.adapter.key"], two["reasoner.adapter.key"])
    with pytest.raises(UsageError, match="objective 'pairwise': use listwise or generative"):
        PromptTuningModule(reasoner_of(trained.llava, DeepPrompts(), Instruction()), objective="pairwise")


@pytest.mark.parametrize(
    ("width", "within", "batch"), [(0, "FirstEpoch", 4), (6, "FirstEpoch", 4), (0, "WithinEpoch", 1)], ids=["prompts", "MLP", "within"]
)
def test_training_resumes_to_the_bit(trained: EventRun, width: int, within: str, batch: int) -> None:
    """Three epochs at once, or a part and then the rest from its checkpoint, of an epoch or of two of an epoch's four steps: clips and
    dropout, weights, MLP, optimiser and schedule."""
    more = ["--trainer.max_epochs", 3, f"{PROMPTS}.reparam_hidden_dim", width, f"{PROMPTS}.dropout", 0.5]
    more += ["--data.batch_size", batch, "--data.micro_batch_size", min(2, batch)]
    runs = f"{width}{within}"
    assert trained("fit", *more, "--trainer.callbacks+", f"rank_dump.{within}", run=f"whole{runs}") == 0
    first = trained.folder / f"whole{runs}" / "first.ckpt"
    assert trained("fit", *more, "--ckpt_path", first, run=f"resumed{runs}") == 0
    start, one, two = (
        torch.load(path, weights_only=True)
        for path in (first, *(trained.folder / f"{name}{runs}" / "checkpoints" / "last.ckpt" for name in ("whole", "resumed")))
    )
    assert one["global_step"] == two["global_step"] == (3 if within == "FirstEpoch" else 6) * start["global_step"]
    assert any("encoder" in name for name in one["state_dict"]) is bool(width)
    changing = "reasoner.adapter.encoder.embedding" if width else "reasoner.adapter.key"
    assert not torch.equal(one["state_dict"][changing], start["state_dict"][changing])
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    assert one["lr_schedulers"] == two["lr_schedulers"]
    ours, theirs = one["optimizer_states"][0], two["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, held in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][number][name]) for name, value in held.items())


def by_peft(run: EventRun, folder: Path, vectors: Tensor, ids: Tensor) -> Tensor:
    """Logits of peft's own model with the exported adapter, after event vectors."""
    base = load_llava(str(run.llava))[0]
    model = PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        embedded = placed(base, ids, base.model.multi_modal_projector(vectors))
        return model(inputs_embeds=embedded, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("width", [0, 6])
def test_a_run_is_exported_for_peft_and_read_again(trained: EventRun, tmp_path: Path, width: int) -> None:
    name, adapter = f"peft{width}", tmp_path / "adapter"
    settings = [f"{PROMPTS}.reparam_hidden_dim", width]
    assert trained("fit", *settings, f"{MODEL}.optimizer.learning_rate", 0.1, "--trainer.max_epochs", 1, run=name) == 0
    assert trained.command("export", trained.folder / name, adapter, "--format", "peft") == 0
    reasoner = PromptTuningModule.load_from_checkpoint(best(trained, name)).reasoner
    vectors, ids = torch.randn(2, 6, 16), reasoner.context.expand(2, -1)
    with torch.no_grad():
        ours = reasoner.base(inputs_embeds=placed(reasoner.base, ids, reasoner.project(vectors))).logits
    torch.testing.assert_close(by_peft(trained, adapter, vectors, ids), ours, atol=1e-5, rtol=0)
    # the adapter, without a checkpoint, tests as the checkpoint does
    assert trained("test", f"{PROMPTS}.init_from", adapter, run=f"{name}-again") == 0
    assert trained("test", *settings, "--ckpt_path", best(trained, name), run=name) == 0
    one, two = (metrics(trained, name=run)["nll"] for run in (name, f"{name}-again"))
    assert one == pytest.approx(two, abs=1e-5)


def test_what_a_run_started_from_is_not_needed_any_more(trained: EventRun, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    assert trained.command("export", trained.folder / "run", adapter, "--format", "peft") == 0
    start = [f"{PROMPTS}.init_from", adapter]
    assert trained("fit", *start, "--trainer.max_epochs", 1, run="started") == 0
    shutil.rmtree(adapter)
    assert trained("test", *start, "--ckpt_path", best(trained, "started"), run="started") == 0


def test_what_peft_cannot_say_is_refused(trained: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--trainer.max_epochs", 1, "--data.source.validation", 0]
    cases = {
        "layers": (
            [f"{PROMPTS}.layers", "last:2"],
            "prompts in last:2 of 3 layers, but a peft prefix has them in all: export a bundle, or train with",
        ),
        "projector": ([f"{MODEL}.reasoner.init_args.train_projector", "true"], "projector was trained, but peft's prefix format"),
    }
    for name, (settings, words) in cases.items():
        assert trained("fit", *short, *settings, run=name) == 0
        capsys.readouterr()
        assert trained.command("export", trained.folder / name, tmp_path / name, "--format", "peft") == 2
        assert words in capsys.readouterr().err
        assert not list(tmp_path.glob(f"*{name}*"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"stage1": "1" * 32}, "the checkpoint reads events of no.ckpt (00000000), these are of no.ckpt (11111111): give events of"),
        ({"people": (1, 2, 4, 8, 3, 6)}, "the checkpoint was trained on xsub60 (training clips "),
        (
            {"actions": ("fall down", "bow")},
            "knows 2 categories, the data has 2, number 1 is 'slide right' there and 'bow' here: give data",
        ),
    ],
    ids=["stage 1", "split", "categories"],
)
def test_weights_are_refused_where_they_were_not_trained_for(
    trained: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, other: dict, words: str
) -> None:
    """Other events, clips or categories, before the LLaVA is loaded; the same through the Python door."""
    data = EventRun(tmp_path, **other)
    monkeypatch.setattr(EventReasoner, "build", lambda *_, **__: pytest.fail("the LLaVA was loaded"))
    there = ["--data.source.root", data.root, "--data.events", data.events, "--ckpt_path", best(trained), *LEVELLED]
    for command in ("test", "validate", "predict"):
        assert trained(command, *there, run="elsewhere") == 2
        assert words in capsys.readouterr().err
    assert trained("fit", *there, f"{MODEL}.optimizer.learning_rate", 0.1, run="elsewhere") == 2
    assert words in capsys.readouterr().err


def test_a_module_is_refused_where_it_was_not_trained_for(trained: EventRun, tmp_path: Path) -> None:
    data = EventRun(tmp_path, stage1="1" * 32)
    module = PromptTuningModule.load_from_checkpoint(best(trained))
    datamodule = data_of(data.root, events=str(data.events), validation=0.5, num_workers=0)
    with pytest.raises(UsageError, match="this module reads events of"):
        Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path).test(module, datamodule)


def test_nobody_validates_whom_it_was_trained_on(trained: EventRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on everybody: tested as ever, but there is nobody left to choose a checkpoint or a temperature by."""
    everybody = ["--data.source.validation", 0]
    assert trained("fit", *everybody, "--trainer.max_epochs", 1, run="everybody") == 0
    there = ["--ckpt_path", trained.folder / "everybody" / "checkpoints" / "last.ckpt"]
    for command, run in (("validate", "elsewhere"), ("fit", "everybody")):
        assert trained(command, *there, run=run) == 2
        said = capsys.readouterr().err
        assert "the checkpoint was trained on clips that would validate it now (clips of 1, 4): " in said
        assert "--data.source.validation 0 --data.seed " in said
    assert trained("test", *there, run="elsewhere") == 0
    assert trained("fit", *everybody, *there, "--trainer.max_epochs", 2, run="everybody") == 0


def test_a_prefix_of_another_model_is_refused_before_training(
    trained: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same shape, but exported from a run on other weights."""
    assert trained.command("export", trained.folder / "run", tmp_path / "adapter", "--format", "peft") == 0
    other = tiny_llava(tmp_path / "llava", seed=1)
    start = [f"{PROMPTS}.init_from", tmp_path / "adapter", f"{MODEL}.reasoner.init_args.llava.path", other]
    assert trained("fit", *start, run="foreign") == 2
    assert f"{tmp_path / 'adapter'} was trained on {trained.llava}" in capsys.readouterr().err


def test_a_prefix_of_another_shape_is_refused_before_training(
    trained: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get_peft_model(load_llava(str(trained.llava))[0], PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path
    )
    assert trained("fit", f"{PROMPTS}.init_from", tmp_path, run="foreign") == 2
    assert f"{tmp_path}: has 3 prompt tokens, the settings ask for 2; set tokens to 3" in capsys.readouterr().err


# -- what goes in ----------------------------------------------------------------------------------------------------------------


def stage1(quantizer: Quantizer) -> VTEMModule:
    torch.manual_seed(0)
    module = VTEMModule(PixelExtractor(), UniformPooler(2), quantizer, InfoNCE(), event_dim=16)
    module.configure_model()
    module.vtem.fit_statistics(PixelExtractor()(pictures(40)), seed=0)
    return module.requires_grad_(False).eval()


def pictures(clips: int) -> Tensor:
    return torch.randint(256, (clips, 8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(clips))


def test_stage_1_stays_as_it_was_in_training_mode(trained: EventRun) -> None:
    """Whoever calls train(): no layer of it trains, and no buffer changes with the clips it maps."""
    module = PromptTuningModule(reasoner_of(trained.llava, DeepPrompts(4), Instruction()))
    module.mapper = stage1(EMAQuantizer(16, dead_code_threshold=0.5))
    module.train()
    assert module.reasoner.training
    assert not any(part.training for part in module.mapper.modules())
    before = {name: tensor.clone() for name, tensor in module.mapper.state_dict().items()}
    columns = (torch.zeros(3, dtype=torch.long), torch.arange(3), torch.zeros(3, dtype=torch.long))
    for _ in range(3):
        module.vectors(VideoBatch(pictures(3), (torch.arange(8) / 10).expand(3, -1), *columns))
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.mapper.state_dict().items())


@pytest.mark.parametrize("quantizer", [EMAQuantizer(16), IdentityQuantizer()], ids=["codes", "continuous"])
def test_events_features_and_videos_give_the_same_scores(trained: EventRun, quantizer: Quantizer) -> None:
    """One clip through each door: code numbers and table, or float16 vectors; features; frames."""
    module = PromptTuningModule(reasoner_of(trained.llava, DeepPrompts(4, std=1.0), Instruction())).eval()
    module.reasoner.build(["walk", "run", "sit down"], 8, 16)
    module.mapper = stage1(quantizer)
    frames, times = pictures(3), (torch.arange(8) / 10).expand(3, -1)
    columns = (torch.zeros(3, dtype=torch.long), torch.arange(3), torch.zeros(3, dtype=torch.long))
    features = module.mapper.extractor(frames)
    tokens = module.mapper.vtem.tokens(features, times)
    module.table = module.mapper.quantizer.table()
    continuous = module.table is None
    vectors = tokens.vectors.half() if continuous else None
    batches = {
        "events": EventBatch(tokens.ids, vectors, tokens.spans, *columns),
        "features": FeatureBatch(features, times, None, *columns),
        "video": VideoBatch(frames, times, *columns),
    }
    with torch.inference_mode():
        found = {name: module.scores(batch).score for name, batch in batches.items()}
    assert (found["video"][0] - found["video"][1]).abs().max() > 1e-2
    torch.testing.assert_close(found["features"], found["video"], atol=0, rtol=0)
    torch.testing.assert_close(found["events"], found["video"], atol=2e-2 if continuous else 1e-5, rtol=0)
    if continuous:
        assert (tokens.ids == -1).all()
        assert (found["events"] - found["video"]).abs().max() > 0  # rounded to float16


def test_codes_are_looked_up_where_the_module_is(trained: EventRun) -> None:
    """On torch's meta device there are no numbers: what stayed behind on the CPU could not be looked up."""
    module = PromptTuningModule(reasoner_of(trained.llava, DeepPrompts(), Instruction()))
    module.table = torch.randn(5, 16)
    assert "table" not in module.state_dict()
    ids = torch.tensor([[3, 0, 3]])
    spans = torch.zeros(1, 3, 2)
    batch = EventBatch(ids, None, spans, ids[0], ids[0], ids[0])
    assert torch.equal(module.vectors(batch)[0], module.table[[3, 0, 3]])
    moved = module.to("meta").vectors(batch._replace(ids=ids.to("meta")))
    assert (moved.device.type, moved.shape) == ("meta", (1, 3, 16))
    with pytest.raises((RuntimeError, NotImplementedError)):
        module.vectors(batch._replace(ids=ids.to("cpu"))).sum().item()
