"""The linear probe that a test of stage 2 is read against."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modules import data_of
from pipeline import Pipeline

from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.metrics.paired import Difference
from vtlvlm.probes import beside
from vtlvlm.probes.linear import ProbeResult, best_probe, probe_suite
from vtlvlm.report.runs import Run
from vtlvlm.stages.prompt_tuning import PromptTuningModule


def by_hand(chain: Pipeline) -> tuple[str, ProbeResult]:
    """The best probe on the plain views of all clips that are not tested."""
    data = data_of(chain.root, features=str(chain.features), validation=0.0)
    data.setup("test")
    rows = np.concatenate([data.split.train, data.split.test])
    cache = FeatureCache.open(chain.features)
    features, train = cache.features(cache.rows(data.index.name[rows])).numpy(), np.arange(len(data.split.train))
    lengths = np.arange(len(rows))
    found = probe_suite(
        features, data.index.label[rows], data.index.group[rows], lengths, train, np.arange(len(train), len(rows)), num_classes=2
    )
    name = best_probe(found)
    return name, found[name]


def changed(chain: Pipeline, folder: Path, **provenance: Any) -> Path:
    """The event cache, of another provenance."""
    shutil.copytree(chain.events, folder)
    meta = json.loads((folder / "meta.json").read_text())
    meta["provenance"] |= provenance
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def outcome(chain: Pipeline, run: Path, *more: object) -> dict[str, Any]:
    """``metrics.json`` of a test into a new folder."""
    assert chain("test", *chain.on_events, "--trainer.default_root_dir", run, "--ckpt_path", chain.best2, *more) == 0
    return dict(json.loads((run / "metrics.json").read_text()))


def test_the_probe_is_compared_on_the_same_clips(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, probe = by_hand(chain)
    capsys.readouterr()
    found = outcome(chain, tmp_path)
    said = capsys.readouterr().out
    told, ours = found["probe"], found["metrics"]["top1"]
    assert (told["name"], told["top1"], told["num_train"], told["num_test"]) == (name, probe.top1, 4, 2)
    assert told["difference"]["mean"] == pytest.approx(ours - probe.top1)
    assert told["difference"]["low"] <= told["difference"]["mean"] <= told["difference"]["high"]
    assert f"event sentences {ours:.3f}, linear probe ({name}) {probe.top1:.3f} on the same 2 clips: {ours - probe.top1:+.3f} [" in said
    assert "The probe learned from the plain views of 4 training clips, 2 of them from validation people." in said
    assert ("The probe is" in said) == ("--export BUNDLE makes it a recogniser." in said) == (probe.top1 > ours)
    assert said.index("Test metric") < said.index("event sentences ")
    read = Run(tmp_path).test
    assert read is not None
    assert read.probe == told


def test_a_better_probe_comes_with_the_command_that_makes_it_a_recogniser(
    chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line can be typed as it stands."""
    data = data_of(chain.root, "xsub60", labels="a b.csv", seed=4)
    line = beside.command(data, FeatureCache.open(chain.features))
    assert line == f"vtlvlm probe {chain.root} --features {chain.features} --protocol xsub60 --labels 'a b.csv' --seed 4 --export BUNDLE"
    typed = beside.command(data_of(chain.root), FeatureCache.open(chain.features)).replace("BUNDLE", str(tmp_path / "b"))
    assert chain(*shlex.split(typed)[1:]) == 0
    assert (tmp_path / "b" / "bundle.json").is_file()


def test_a_better_probe_is_recommended(
    chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the model has every clip wrong."""
    step = PromptTuningModule.test_step

    def wrong(self: PromptTuningModule, batch: Any, index: int) -> dict[str, torch.Tensor]:
        found = step(self, batch, index)
        return {**found, "probs": 1 - torch.nn.functional.one_hot(found["labels"], 2).float()}

    monkeypatch.setattr(PromptTuningModule, "test_step", wrong)
    name, probe = by_hand(chain)
    assert probe.top1 > 0
    capsys.readouterr()
    found = outcome(chain, tmp_path)
    said = capsys.readouterr().out
    assert f"event sentences 0.000, linear probe ({name}) {probe.top1:.3f} on the same 2 clips: {-probe.top1:+.3f} [" in said
    assert f"{beside.verdict(Difference(**found['probe']['difference']))} vtlvlm probe " in said
    assert said.endswith(" --protocol xsub60 --export BUNDLE makes it a recogniser.\n")
    assert found["probe"]["difference"]["mean"] == -probe.top1
    untuned = tmp_path / "untuned.yaml"
    untuned.write_text(chain.stage2.read_text().replace("{class_path: DeepPrompts, init_args: {tokens: 2}}", "{class_path: NoAdapter}"))
    untuned.write_text(untuned.read_text().replace("train_projector: true", "train_projector: false").replace("init_projector: probe", ""))
    assert chain("test", "--config", untuned, "--data.events", chain.events, "--trainer.default_root_dir", tmp_path / "untuned") == 0
    said = capsys.readouterr().out
    assert "event sentences 0.000, linear probe" in said
    assert "The probe is" not in said  # nothing was trained: it is no question of how few clips there are


def test_the_verdict_is_as_sure_as_the_interval() -> None:
    assert "is better here" in beside.verdict(Difference(-0.2, -0.3, -0.1))
    assert "as good here, or better" in beside.verdict(Difference(-0.1, -0.3, 0.1))


def test_a_run_on_features_has_them_at_hand(chain: Pipeline, tmp_path: Path) -> None:
    on_features = ["--config", chain.stage2, "--data.features", chain.features, "--model.init_args.vtem", chain.best1]
    assert chain("test", *on_features, "--trainer.default_root_dir", tmp_path, "--ckpt_path", chain.best2) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["probe"]
    assert found["top1"] == by_hand(chain)[1].top1


@pytest.mark.parametrize(
    ("provenance", "reason"),
    [
        ({"features_folder": None}, "does not say where its features are"),
        ({"features_folder": "/nowhere/features"}, "/nowhere/features: holds no cache of features"),
        ({"features_folder": 3}, "its description lacks features_folder"),
        ({"features_folder": "a\0b"}, "names no valid path of its features"),
        ({"features_folder": "x" * 10**5}, "names no valid path of its features"),
        ({"features": "0" * 32}, "holds other features than"),
    ],
)
def test_without_the_features_a_line_of_the_log_says_so(
    chain: Pipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    provenance: dict[str, Any],
    reason: str,
) -> None:
    events = changed(chain, tmp_path / "events", **provenance)
    capsys.readouterr()
    found = outcome(chain, tmp_path / "run", "--data.events", events)
    said = [message for message in caplog.messages if "linear probe" in message]
    assert "probe" not in found
    assert len(said) == 1
    assert said[0].startswith("no linear probe beside the result: ")
    assert reason in said[0]
    assert "linear probe" not in capsys.readouterr().out


def test_what_goes_wrong_does_not_end_the_test(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The features are damaged: results are there, and one line says what is not."""
    features = tmp_path / "features"
    shutil.copytree(chain.features, features, ignore=shutil.ignore_patterns("probes-*"))
    for shard in features.glob("features-*"):
        held = bytearray(shard.read_bytes())
        held[-2:] = b"\x00\x7e"  # nan
        shard.write_bytes(held)
    events = changed(chain, tmp_path / "events", features_folder=str(features))
    capsys.readouterr()
    found = outcome(chain, tmp_path / "run", "--data.events", events)
    said = capsys.readouterr().err
    assert "probe" not in found
    assert set(found["metrics"]) >= {"top1", "nll"}
    assert "the linear probe beside the result cannot be made (DataError: linear probe: the " in said
    assert "Traceback" not in said


def test_it_can_be_left_out(chain: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    none = tmp_path / "none.yaml"
    none.write_text("trainer: {callbacks: [{class_path: vtlvlm.probes.beside.ProbeBeside, init_args: {most_clips: 0}}]}\n")
    assert "probe" not in outcome(chain, tmp_path / "run", "--config", none)
    few = tmp_path / "few.yaml"
    few.write_text(none.read_text().replace("most_clips: 0", "most_clips: 3"))
    assert "probe" not in outcome(chain, tmp_path / "few", "--config", few)
    assert "no linear probe beside the result: 4 training clips, more than 3" in caplog.messages


def test_of_another_folder_only_the_description_is_read(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that an event cache names, nothing but the description is read unless that is the cache it was made from."""
    events = changed(chain, tmp_path / "events", features="0" * 32)
    monkeypatch.setattr(beside.FeatureCache, "open", lambda folder: pytest.fail("opened"))

    class Data:
        features_cache, events_cache = None, EventCache.open(events)

    with pytest.raises(beside.DataError, match="holds other features than"):
        beside.features_of(Data)
