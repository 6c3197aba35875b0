"""A linear probe as a recogniser: exported by `probe`, read by `classify`."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from modules import data_of
from pipeline import Pipeline
from safetensors.torch import load_file
from scipy.special import softmax
from tiny import FEATURE_DIM

from vtlvlm.data.cache import FeatureCache
from vtlvlm.errors import UsageError
from vtlvlm.probes.linear import VECTORS, FittedProbe, LinearProbe, clip_vectors, fit_probe
from vtlvlm.recognizers.probe import SIZES, ProbeRecognizer, extractor_of, temperature_of
from vtlvlm.recognizers.recognizer import ActionRecognizer

CLIP = "S001C001P001R001A001_rgb.avi"


def exported(chain: Pipeline, folder: Path, *more: object) -> int:
    return chain("probe", chain.root, "--features", chain.features, "--export", folder, *more)


@pytest.mark.parametrize("name", VECTORS)
def test_classify_gives_what_the_probe_computes_from_the_cache(chain: Pipeline, tmp_path: Path, name: str) -> None:
    """From the file through the bundle, or from the cached features through scikit-learn's weights and the temperature."""
    assert exported(chain, tmp_path / "b", "--probe", name) == 0
    data = data_of(chain.root, features=str(chain.features), validation=0.0)
    data.setup("test")
    cache, train = FeatureCache.open(chain.features), data.split.train
    vectors = clip_vectors(cache.features(cache.rows(data.index.name[train])).numpy())[name]
    fitted = fit_probe(vectors, data.index.label[train], groups=data.index.group[train], num_classes=2)
    temperature = temperature_of(fitted, data.index.label[train])
    expected = fitted.probe.probabilities(vectors, temperature)
    recognizer = ActionRecognizer.from_checkpoint(tmp_path / "b", device="cpu")
    assert isinstance(recognizer, ProbeRecognizer)
    for row, probs in zip(train, expected, strict=True):
        found = recognizer.classify(data.index.file(row))
        assert found.events is None
        assert dict(found.actions) == pytest.approx(dict(zip(data.classes, probs, strict=True)), abs=1e-3)
        assert sum(dict(found.actions).values()) == pytest.approx(1, abs=1e-6)


def test_the_temperature_is_of_people_who_were_held_out() -> None:
    """Held-out probabilities that are too sure, or hardly differ, become as sure as they are right: 3 of 4, whatever their scale. A clip
    whose class the other people lacked says nothing."""
    none = LinearProbe(*[np.zeros(1)] * 4)
    right = np.arange(400) % 4 != 0
    labels = np.arange(400) // 7 % 2
    said = np.where(right, labels, 1 - labels)
    for gap in (1e-4, 1.0, 30.0):
        scores = np.zeros((401, 2))
        scores[np.arange(400), said] = gap
        probs = np.pad(softmax(scores, axis=-1), ((0, 0), (0, 1)))
        probs[400] = [0.5, 0.5, 0.0]
        found = temperature_of(FittedProbe(none, 1.0, probs, 0.75), np.append(labels, 2))
        assert gap / found == pytest.approx(math.log(3), rel=0.03)  # 0.75 and 0.25
    assert temperature_of(FittedProbe(none, 1.0, np.zeros((2, 2)), 0.0), np.array([0, 1])) == 1.0
    assert temperature_of(FittedProbe(none, 1.0, np.full((2, 2), 0.5), 0.5), np.array([0, 1])) == pytest.approx(1.0, abs=1e-3)


def test_a_bundle_says_what_it_is(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "probes.json"
    assert exported(chain, tmp_path / "b", "--output", output, "--seed", 5) == 0
    assert "vtlvlm classify --model" in capsys.readouterr().out
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())
    probes = json.loads(output.read_text())["probes"]
    best = max(probes[name]["chosen_accuracy"] for name in VECTORS)
    assert probes[described["probe"]]["chosen_accuracy"] == best
    assert (described["kind"], described["classes"]) == ("probe", ["fall down", "slide right"])
    origin = described["origin"]
    assert (origin["seed"], origin["num_train"], origin["protocol"]) == (5, 4, "xsub60")
    assert origin["extractor"] == FeatureCache.open(chain.features).provenance["extractor"]
    assert origin["split"]["groups"]["test"]
    assert origin["environment"]["versions"]["vtlvlm"] == described["version"]
    held = load_file(tmp_path / "b" / "probe.safetensors")
    assert set(held) == {"mean", "scale", "weight", "bias", "temperature"}
    assert float(held["temperature"]) == pytest.approx(origin["temperature"])
    assert held["weight"].shape == (2, 4 * FEATURE_DIM * SIZES[described["probe"]])


def test_classify_reads_it_as_any_bundle(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines, also where a file cannot be read; moved, and where the weights it was made with are gone."""
    assert exported(chain, tmp_path / "b") == 0
    bundle = (tmp_path / "b").rename(tmp_path / "moved")
    (tmp_path / "broken.avi").write_text("no video")
    keys = []
    for model in (bundle, chain.bundle):
        capsys.readouterr()
        assert chain("classify", "--model", model, "--json", "--top", 1, tmp_path / "broken.avi", chain.root) == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        keys.append([(sorted(line), [sorted(action) for action in line.get("actions", [])]) for line in lines])
    assert keys[0] == keys[1]
    assert chain("classify", "--model", bundle, chain.root / CLIP) == 0
    assert capsys.readouterr().out.splitlines()[1].strip().endswith(("fall down", "slide right"))


def test_what_is_for_a_language_model_is_refused(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(chain, tmp_path / "b") == 0
    for option, value in (("--llava", "x"), ("--dtype", "float32"), ("--attention", "eager"), ("--quantization", "none")):
        capsys.readouterr()
        assert chain("classify", "--model", tmp_path / "b", option, value, chain.root / CLIP) == 2
        assert f"a linear probe, which has no language model: leave {option[2:]} out" in capsys.readouterr().err
    assert chain("classify", "--model", tmp_path / "b", "--device", "cuda:77", chain.root / CLIP) == 2
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(described | {"kind": "forest"}))
    with pytest.raises(UsageError, match="a bundle of kind 'forest'"):
        ActionRecognizer.from_checkpoint(tmp_path / "b")


def test_options_that_do_not_go_together(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["probe", chain.root, "--features", chain.features]
    new = tmp_path / "b"
    refused = {
        ("--probe", "thirds"): "--probe goes with --export",
        ("--weights", "x.pt"): "--weights goes with --export",
        ("--export", new, "--probe", "clip length"): "no probe to export; there are mean feature, movement",
        ("--export", new, "--output", new / "x.json"): "lies in the bundle",
        ("--export", tmp_path): "already exists",
        ("--export", chain.features / "b"): "would lie inside",
        ("--export", chain.root / "b"): "would lie inside",
        ("--export", new, "--weights", tmp_path / "none.pt"): "no such weights file",
    }
    for more, words in refused.items():
        capsys.readouterr()
        assert chain(*plain, *more) == 2
        assert words in capsys.readouterr().err
    assert not new.exists()


def test_the_extractor_of_a_cache(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older cache does not say where its weights lay; weights of another network are refused."""
    features = Path(shutil.copytree(chain.features, tmp_path / "features"))
    meta = json.loads((features / "meta.json").read_text())
    weights = meta["provenance"].pop("extractor_settings")["init_args"]["weights"]
    (features / "meta.json").write_text(json.dumps(meta))
    found = extractor_of(FeatureCache.open(features), weights)
    assert found.fingerprint() == meta["provenance"]["extractor"]
    other = tmp_path / "other.pt"
    torch.save({name: tensor * 1.01 for name, tensor in found.state_dict().items()}, other)
    plain = ["probe", chain.root, "--features", features, "--export", tmp_path / "b"]
    capsys.readouterr()
    assert chain(*plain, "--weights", other) == 2
    assert "name its weights with --weights" in capsys.readouterr().err
    assert chain(*plain, "--weights", weights) == 0


def test_a_report_needs_event_sentences(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtlvlm.commands import demo_report

    assert exported(chain, tmp_path / "bundle") == 0
    (tmp_path / "probes.json").write_text('{"probes": {}}')
    for name, source in (("videos", chain.root), ("features", chain.features), ("stage1", chain.run1), ("stage2", chain.run2)):
        (tmp_path / name).symlink_to(source)
    (tmp_path / "untuned").symlink_to(chain.run2)
    with pytest.raises(demo_report.DataError, match="a linear probe, which has no event sentences"):
        demo_report.pipeline_report(tmp_path)
