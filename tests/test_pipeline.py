"""The whole chain on a handful of tiny clips, through the command line and its real files."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from modules import data_of
from pipeline import Pipeline
from reasoners import reasoner_of
from tiny import FEATURE_DIM

from vtlvlm.data.cache import EventCache
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.projector_init import EventMoments, Votes, fit_votes
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.stages.compatibility import module_hash
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.vtem import VTEMModule


def test_run_folder_tells_what_was_done(chain: Pipeline) -> None:
    found = json.loads((chain.run2 / "metrics.json").read_text())
    assert (found["protocol"], found["split"], found["num_clips"], found["seed"]) == ("xsub60", "test", 2, 3)
    assert found["views_per_clip"] == 1
    assert set(found["metrics"]) >= {"top1", "top5", "mean_class_accuracy", "nll", "ece", "brier", "in_list_mass"}
    assert set(found["metrics"]) >= {"temperature", "nll_calibrated", "ece_calibrated", "brier_calibrated"}
    assert found["provenance"]["stage1"]["checkpoint"] == str(chain.best1)
    assert (chain.run2 / "config.yaml").is_file()
    assert list((chain.run2 / "tensorboard").glob("events.out.tfevents.*"))
    assert sum(map(sum, json.loads((chain.run2 / "confusion_test.json").read_text())["matrix"])) == 2


def test_run_folder_of_stage1_shows_its_codebook(chain: Pipeline, tmp_path: Path) -> None:
    found = json.loads((chain.run1 / "codebook_val.json").read_text())
    assert found["tokens"] == 2 * 4 * 4
    assert (chain.run1 / "codebook_val.png").is_file()
    assert not list(chain.run2.glob("codebook*"))

    root = tmp_path / "gone"  # the features are left, the videos are not
    shutil.copytree(chain.root, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    for file in root.glob("*.avi"):
        file.write_bytes(b"")
    elsewhere = ["--data.source.root", root, "--trainer.default_root_dir", tmp_path / "run", "--ckpt_path", chain.best1]
    assert chain("validate", *chain.on_features, *elsewhere) == 0
    again = json.loads((tmp_path / "run" / "codebook_val.json").read_text())
    assert again["tokens"] == found["tokens"]
    assert (tmp_path / "run" / "codebook_val.png").is_file()


def test_stage2_checkpoint_holds_only_what_was_trained(chain: Pipeline) -> None:
    state = torch.load(chain.best2, weights_only=True)["state_dict"]
    projector = {f"base.model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert set(state) == {f"reasoner.{name}" for name in {"adapter.key", "adapter.value", "prior", "temperature"} | projector}
    assert chain.best2.stat().st_size < 200_000


def test_a_trained_reasoner_is_not_aligned_anew(chain: Pipeline) -> None:
    """Continuing a training must not throw away its projector and prior; a new one starts from the training side."""
    module = PromptTuningModule.load_from_checkpoint(chain.best2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.on_fit_start()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    empty = PromptTuningModule.load_from_checkpoint(chain.best2).reasoner
    empty.build(empty.classes, empty.num_events, 16)  # lays out anew, with the prior after empty events
    assert not torch.equal(empty.prior, module.reasoner.prior)


def test_the_projector_starts_from_events_as_it_reads_them(chain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of their sentence's mean in each, on all training clips and views; votes by their sentences' means and groups.

    Training clips are of one person here, so each clip is its own group."""
    data = data_of(chain.root, events=str(chain.events), batch_size=2, micro_batch_size=2, num_workers=0, validation=0.5)
    settings = {"train_projector": True, "init_projector": "probe", "sentence_mean_weight": 0.5}
    module = PromptTuningModule(reasoner_of(chain.llava, DeepPrompts(0), Instruction(), **settings))
    taken: list[tuple[Votes, EventMoments]] = []
    monkeypatch.setattr(EventReasoner, "align", lambda self, *found: taken.append(found))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", devices=1, max_steps=1, limit_val_batches=0, **quiet).fit(module, data)
    by_hand, loader, seen = EventMoments(16), data.train_dataloader(), []
    for epoch in range(data.num_views):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            vectors = torch.nn.functional.embedding(batch.ids, module.table)
            by_hand.add(0.5 * vectors + 0.5 * vectors.mean(1, keepdim=True))
            seen.append((vectors.mean(1), batch.labels, batch.clips))
    assert by_hand.count == 2 * 2 * 16
    assert len(set(data.index.subject[data.split.train])) == 1
    votes, moments = taken[0]
    torch.testing.assert_close(moments.state_dict(), by_hand.state_dict())
    expected = fit_votes(*map(torch.cat, zip(*seen, strict=True)), num_classes=len(data.classes))
    torch.testing.assert_close(votes.weight, expected.weight)


def test_the_prior_is_the_mean_log_likelihood_over_training_clips(chain: Pipeline) -> None:
    """Of every clip in all its views, by a reasoner without a prior; never of those it is tested on."""
    data = data_of(chain.root, events=str(chain.events), batch_size=2, micro_batch_size=2, num_workers=0, validation=0.5)
    asked = DeepPrompts(2, init_text="a video of"), Instruction(list_categories=False)
    module = PromptTuningModule(reasoner_of(chain.llava, *asked, label_score="pmi"))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", devices=1, max_steps=1, limit_val_batches=0, **quiet).fit(module, data)
    plain = reasoner_of(chain.llava, DeepPrompts(2, init_text="a video of"), Instruction(list_categories=False)).eval()
    plain.build(data.classes, module.reasoner.num_events, 16)
    likelihoods, loader = [], data.train_dataloader()
    for epoch in range(data.num_views):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                likelihoods.append(plain(torch.nn.functional.embedding(batch.ids, module.table)).log_likelihood)
    torch.testing.assert_close(module.reasoner.prior, torch.cat(likelihoods).mean(0), atol=1e-5, rtol=1e-5)
    assert "reasoner.prior" in module.state_dict()


def test_stage1_round_trip_gives_the_cached_events(chain: Pipeline) -> None:
    module = VTEMModule.load_from_checkpoint(chain.best1)
    cache = EventCache.open(chain.events)
    assert cache.provenance["vtem_hash"] == module_hash(module)
    assert cache.provenance["features_folder"] == str(chain.features.resolve())
    torch.testing.assert_close(cache.table, module.quantizer.table())
    from vtlvlm.data.cache import FeatureCache

    features = FeatureCache.open(chain.features)
    assert features.provenance["extractor_settings"] == settings_of(module.extractor)
    rows = features.rows(cache.names, 0)
    tokens = module.vtem.tokens(features.features(rows), features.times(rows))
    assert torch.equal(tokens.ids[cache.views == 0], cache.ids((cache.views == 0).nonzero()[0]))


def test_test_views_go_through_both_caches_and_are_averaged(chain: Pipeline, tmp_path: Path) -> None:
    """Trained on caches with three test views; the test's probabilities are the mean of the three that `predict` lists, each of which has
    a temperature of its own, while the test applies it to the mean."""
    views = ["--data.sampling.test_clips", 3]
    features, events, one, two = (tmp_path / name for name in ("features", "events", "one", "two"))
    first = ["--config", chain.stage1, "--data.features", features]
    second = ["--config", chain.stage2, "--data.events", events, "--trainer.default_root_dir", two]
    last = ["--ckpt_path", two / "checkpoints" / "last.ckpt"]
    assert chain("extract", "--config", chain.stage1, *views, "--output", features) == 0
    assert chain("fit", *first, "--trainer.default_root_dir", one) == 0
    assert chain("tokenize", *first, "--ckpt_path", one / "checkpoints" / "last.ckpt", "--output", events) == 0
    assert chain("fit", *second) == 0
    assert chain("test", *second, *last) == 0
    assert chain("predict", *second, *last) == 0
    found = json.loads((two / "metrics.json").read_text())
    assert (found["num_clips"], found["views_per_clip"]) == (2, 3)
    rows = list(csv.DictReader((two / "predictions.csv").open()))
    tested = [row for row in rows if int(row["view"]) >= 1000]
    assert len(tested) == 6
    metrics, names = found["metrics"], ("fall down", "slide right")
    temperature = metrics["temperature"]
    assert abs(temperature - 1) > 0.01
    nll = torch.zeros(2)
    for clip in {row["clip"] for row in tested}:
        rows = [row for row in tested if row["clip"] == clip]
        listed = torch.tensor([[float(row[name]) for name in names] for row in rows])
        mean = (temperature * listed.log()).softmax(-1).mean(0)
        truth = names.index(rows[0]["truth"])
        calibrated = (mean.log() / temperature).softmax(-1)
        once = next(row for row in csv.DictReader((two / "predictions_test.csv").open()) if row["clip"] == clip)
        assert [float(once[name]) for name in names] == pytest.approx(calibrated.tolist(), abs=1e-5)
        assert (once["truth"], once["recognised"]) == (names[truth], names[int(mean.argmax())])
        nll -= torch.stack([mean[truth].log(), (mean.log() / temperature).log_softmax(-1)[truth]]) / 2
    assert [metrics["nll"], metrics["nll_calibrated"]] == pytest.approx(nll.tolist(), rel=1e-3)  # files hold rounded probabilities


def test_a_requeued_job_goes_on(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm starts a job whose node has failed with the same command; no signal came, so that there is no ``hpc_ckpt`` of Lightning."""
    run = Path(shutil.copytree(chain.run2, tmp_path / "run"))
    (run / "fit.json").unlink()  # killed
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = ["fit", *chain.on_events, "--trainer.default_root_dir", run, "--trainer.max_epochs"]
    assert chain(*again, 3) == 0
    session = json.loads((run / "fit.json").read_text())["sessions"][-1]
    assert (session["first_step"], session["last_step"]) == (2, 3)
    empty = tmp_path / "empty"  # killed before there was a checkpoint: from the start, or from what the command names
    asked = ["fit", *chain.on_events, "--trainer.default_root_dir", empty, "--ckpt_path", chain.run2 / "checkpoints" / "last.ckpt"]
    assert chain(*asked, "--trainer.max_epochs", 3) == 0
    assert chain(*asked, "--trainer.max_epochs", 4) == 0  # goes on where it was, not where it came from
    assert [s["first_step"] for s in json.loads((empty / "fit.json").read_text())["sessions"]] == [2, 3]


def test_probes_of_every_step_of_stage_one(chain: Pipeline, tmp_path: Path) -> None:
    output = tmp_path / "probes.json"
    assert chain("probe", chain.root, "--features", chain.features, "--vtem", chain.best1, "--output", output) == 0
    found = json.loads(output.read_text())["probes"]
    names = ["features", "windows", "continuous events", "codes"]
    assert list(found)[7:] == [f"{name}: {probe}" for name in names for probe in ("linear, mean", "attention")]
    assert found["codes: attention"]["dims"] == 16 * 16  # 4 windows of 4 cells, 16 numbers wide
    assert found["features: attention"]["dims"] == 8 * 4 * FEATURE_DIM


def test_a_backbone_trained_along_is_kept_in_the_checkpoint(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(chain.stage1.read_text().replace("image_size: 64}", "image_size: 64, trainable: true}"))
    to = ["--trainer.default_root_dir", tmp_path / "run", "--trainer.max_steps", 1]
    assert chain("fit", "--config", tuned, "--data.features", chain.features, *to) == 2
    assert "which needs videos: leave data.features out" in capsys.readouterr().err
    assert chain("fit", "--config", tuned, *to) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    module, frozen = VTEMModule.load_from_checkpoint(checkpoint), VTEMModule.load_from_checkpoint(chain.best1)
    frozen.extractor.load_weights()
    assert module.extractor.loaded
    stem = [next(m.extractor.backbone.parameters()) for m in (module, frozen)]
    assert 0 < float((stem[0] - stem[1]).detach().abs().max()) < 0.01


def test_caches_are_verified_on_request(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "features"
    shutil.copytree(chain.features, folder)
    assert chain("extract", "--config", chain.stage1, "--output", folder, "--verify") == 0
    assert "all digests match" in capsys.readouterr().out
    shard = next(folder.glob("features-*"))
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    assert chain("extract", "--config", chain.stage1, "--output", folder, "--verify") == 1
    assert f"{shard.name}: has changed since it was written" in capsys.readouterr().err
    shard.unlink()
    assert chain("extract", "--config", chain.stage1, "--output", folder, "--verify") == 0


def test_no_room_for_a_cache(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert chain("extract", "--config", chain.stage1, "--output", tmp_path / "f") == 1
    assert "make room, or name a folder on another disk" in capsys.readouterr().err


def test_extract_again_does_nothing(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in chain.features.glob("*.safetensors")}
    assert chain("extract", "--config", chain.stage1, "--output", chain.features) == 0
    assert "all 10 clips and views are already there" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in chain.features.glob("*.safetensors")} == before


def test_training_goes_on_from_a_checkpoint(chain: Pipeline, tmp_path: Path) -> None:
    again = [
        "--trainer.default_root_dir",
        tmp_path / "more",
        "--ckpt_path",
        chain.run2 / "checkpoints" / "last.ckpt",
        "--trainer.max_epochs",
        3,
    ]
    assert chain("fit", *chain.on_events, *again) == 0
    assert json.loads((tmp_path / "more" / "fit.json").read_text())["sessions"][-1]["last_step"] == 3


@pytest.mark.parametrize("door", ["features", "video"])
def test_stage2_without_an_event_cache(chain: Pipeline, tmp_path: Path, door: str) -> None:
    """From the feature cache or straight from the files: the same checkpoint gives the same metrics and the same probabilities."""
    given = ["--data.features", chain.features] if door == "features" else ["--data.sampling.frames", 8, "--data.sampling.size", 64]
    arguments = ["--config", chain.stage2, *given, "--model.init_args.vtem", chain.best1, "--ckpt_path", chain.best2]
    there = ["--trainer.default_root_dir", tmp_path / "there"]
    assert chain("test", *arguments, *there) == 0
    one, two = (json.loads((run / "metrics.json").read_text())["metrics"] for run in (chain.run2, tmp_path / "there"))
    assert one["nll"] == pytest.approx(two["nll"], rel=1e-3)
    assert one["nll_calibrated"] == pytest.approx(two["nll_calibrated"], rel=1e-3)
    assert chain("predict", *arguments, *there) == 0
    assert chain("predict", *chain.on_events, "--ckpt_path", chain.best2, "--trainer.default_root_dir", tmp_path / "events") == 0
    first, second = (list(csv.DictReader((tmp_path / name / "predictions.csv").open())) for name in ("events", "there"))
    plain = {row["clip"]: row for row in second if row["view"] == "0"}
    assert len(plain) == 6
    for row in first:
        if row["view"] == "0":
            assert float(row["fall down"]) == pytest.approx(float(plain[row["clip"]]["fall down"]), abs=1e-4)


def test_predict_writes_the_probabilities_of_every_clip_and_view(chain: Pipeline, tmp_path: Path) -> None:
    assert chain("predict", *chain.on_events, "--trainer.default_root_dir", tmp_path, "--ckpt_path", chain.best2) == 0
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["clip"], row["view"]) for row in rows} == {(n, str(v)) for n, v in zip(*cache_keys(chain), strict=True)}
    for row in rows:
        shares = {name: float(row[name]) for name in ("fall down", "slide right")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["recognised"] == max(shares, key=shares.__getitem__)
        assert row["truth"] == ("fall down" if "A001" in row["clip"] else "slide right")


def cache_keys(chain: Pipeline) -> tuple[list[str], list[int]]:
    cache = EventCache.open(chain.events)
    return cache.names.tolist(), cache.views.tolist()


def test_stage_one_goes_on_with_settings_that_change_no_feature(
    chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number of frames at once, and the same weights in another place; other weights are refused."""
    moved, extractor = Path(shutil.copy(chain.weights, tmp_path / "moved.pth")), "--model.init_args.extractor.init_args"
    there = ["--ckpt_path", chain.best1, "--trainer.default_root_dir", tmp_path / "run", f"{extractor}.chunk", 7]
    assert chain("test", *chain.on_features, *there, f"{extractor}.weights", moved) == 0
    assert chain("fit", *chain.on_features, *there, f"{extractor}.weights", moved, "--trainer.max_epochs", 3) == 0
    there[3] = tmp_path / "other"
    tensors = torch.load(moved, weights_only=True)
    torch.save({name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, moved)
    assert chain("test", *chain.on_features, *there, f"{extractor}.weights", moved) == 2
    assert "was trained on features of an extractor with weights_sha256" in capsys.readouterr().err
    assert chain("test", *chain.on_features, *there, f"{extractor}.image_size", 96) == 2
    assert "image_size" in capsys.readouterr().err


def test_the_model_as_it_starts_can_be_the_best_one(chain: Pipeline, tmp_path: Path) -> None:
    """With steps that only do harm ``best.ckpt`` is the start; looking at it changes no step, and a run can go on from it."""
    first, plain, on = tmp_path / "first", tmp_path / "plain", tmp_path / "on"
    harm = ["--model.init_args.optimizer.learning_rate", 30, "--trainer.max_steps", 4]
    assert chain("fit", *chain.on_events, *harm, "--trainer.callbacks+=ValidateFirst", "--trainer.default_root_dir", first) == 0
    assert chain("fit", *chain.on_events, *harm, "--trainer.default_root_dir", plain) == 0
    best, other = (torch.load(run / "checkpoints" / "best.ckpt", weights_only=False) for run in (first, plain))
    assert (best["global_step"], other["global_step"] > 0) == (0, True)
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"] for run in (first, plain)]
    torch.testing.assert_close(*ends, atol=0, rtol=0)
    more = ["--trainer.callbacks+=ValidateFirst", "--trainer.default_root_dir", on, "--ckpt_path", first / "checkpoints" / "best.ckpt"]
    assert chain("fit", *chain.on_events, *harm, *more) == 0
    again = torch.load(on / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    torch.testing.assert_close(again, ends[0], atol=0, rtol=0)
