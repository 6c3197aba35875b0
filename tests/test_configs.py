"""Every configuration that is shipped can be read, says what it is for, and holds the numbers it claims."""

from functools import reduce
from pathlib import Path

import pytest
import yaml

from vtlvlm.cli import main
from vtlvlm.configs import config
from vtlvlm.configs import resolved as located
from vtlvlm.errors import UsageError

FOLDER = Path(__file__).parents[1] / "lightning_configs"
STAGES = sorted(FOLDER.glob("*.yaml"))


def resolved(path: Path, capsys: pytest.CaptureFixture[str], *overlays: Path) -> dict:
    files = [argument for file in (path, *overlays) for argument in ("--config", str(file))]
    with pytest.raises(SystemExit) as end:
        main(["fit", *files, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.name)
def test_configuration_is_complete_and_headed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text().startswith("# Stage")
    assert "# Hardware" in path.read_text()
    found = resolved(path, capsys)
    assert found["model"]["class_path"].split(".")[-1] in ("VTEMModule", "PromptTuningModule")
    included = yaml.safe_load((FOLDER / yaml.safe_load(path.read_text())["trainer"]).read_text())
    assert included["max_steps"] > 0
    asked = [callback["class_path"] for callback in included.pop("callbacks", [])]
    assert [callback["class_path"].split(".")[-1] for callback in found["trainer"]["callbacks"] or []] == asked
    assert {key: found["trainer"][key] for key in included} == included  # a dotted key beside an include would undo the include
    assert found["data"]["batch_size"] % found["data"]["micro_batch_size"] == 0


ARMS = {
    "no_quantization": ("quantizer", "IdentityQuantizer", {}),
    "uniform_pooling": ("pooler", "UniformPooler", {}),
    "no_coherence": None,
    "tokens_64": ("pooler", "EqualSaliencePooler", {"windows": 4}),
    "tokens_128": ("pooler", "EqualSaliencePooler", {"windows": 8}),
    "tokens_512": ("pooler", "EqualSaliencePooler", {"windows": 32}),
    "codes_512": ("quantizer", "EMAQuantizer", {"codes": 512}),
    "codes_1024": ("quantizer", "EMAQuantizer", {"codes": 1024}),
    "codes_4096": ("quantizer", "EMAQuantizer", {"codes": 4096}),
    "rotation": ("quantizer", "EMAQuantizer", {"rotation": True}),
    "factorised": (
        "quantizer",
        "FactorisedQuantizer",
        {"codes": 2048, "code_dim": 32, "decay": 0.99, "dead_code_threshold": 0.125, "commitment": 0.25, "rotation": False},
    ),
    "learned": ("quantizer", "LearnedQuantizer", {"codes": 2048, "commitment": 0.25, "rotation": False}),
    "simvq": ("quantizer", "SimVQQuantizer", {"codes": 2048, "commitment": 0.25, "rotation": False}),
    "fsq": ("quantizer", "FSQQuantizer", {"levels": [8, 8, 8, 4]}),
    "paper_tokens": None,
    "no_abs_delta": None,
    "no_lda": None,
    "target_llava": None,
    "extractor_clip": (
        "extractor",
        "ClipExtractor",
        {"model": "llava-hf/llava-1.5-7b-hf", "revision": None, "chunk": 16, "trainable": False, "compiled": False},
    ),
}


ADAPTERS = {
    "adapter_none": ("NoAdapter", {}, None),
    "adapter_projector": ("NoAdapter", {}, None),
    "adapter_lora": ("LoRA", {"rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": "all-linear"}, 2e-4),
    "adapter_full": ("FullFineTuning", {}, 2e-5),
}
"""Stage-2 overlays: the adapter, its settings, and the learning rate where it is another"""
STAGE2_ARMS = {
    "objective_generative": {"objective": ("generative", "listwise")},
    "no_sentence_mean": {"reasoner.init_args.sentence_mean_weight": (0.0, 0.7)},
}
"""Overlays of stage 2: what they set, and what the configurations say without them."""
OVERLAYS = sorted((FOLDER / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in OVERLAYS if path.stem in STAGE2_ARMS], ids=lambda path: path.stem)
@pytest.mark.parametrize("base", ["stage2_prompt.yaml", "stage2_small.yaml"])
def test_ablations_of_stage2_change_what_they_say_and_nothing_else(base: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text().startswith(("# Table ", "# Beyond the paper"))
    assert len(path.read_text().splitlines()) <= 6
    plain, arm = resolved(FOLDER / base, capsys), resolved(FOLDER / base, capsys, path)
    for place, values in STAGE2_ARMS[path.stem].items():
        *parents, name = place.split(".")
        found = [reduce(dict.__getitem__, parents, config["model"]["init_args"]).pop(name) for config in (arm, plain)]
        without = path.stem == "no_sentence_mean" and base == "stage2_prompt.yaml"  # the paper's has none to begin with
        assert tuple(found) == ((values[0],) * 2 if without else values)
    assert arm == plain


@pytest.mark.parametrize("path", [path for path in OVERLAYS if path.stem not in {**ADAPTERS, **STAGE2_ARMS}], ids=lambda path: path.stem)
@pytest.mark.parametrize("base", ["stage1_vtem.yaml", "stage1_small.yaml"])
def test_ablations_change_what_they_say_and_nothing_else(base: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text().startswith(("# Table ", "# Beyond the paper", "# The paper's own"))
    assert len(path.read_text().splitlines()) <= 6
    plain = resolved(FOLDER / base, capsys)
    arm = resolved(FOLDER / base, capsys, path)
    model, other = arm["model"]["init_args"], plain["model"]["init_args"]
    change = ARMS[path.stem]
    if path.stem == "target_llava":
        assert (model.pop("target"), other.pop("target")) == ("llava", "features")
        inputs = model.pop("inputs")
        assert (inputs["subtract_clip_mean"], inputs["lda_weight"]) == (0.0, 0.0)
        other.pop("inputs")
    elif path.stem == "paper_tokens":
        names = ("delta_weight", "subtract_clip_mean", "abs_delta_weight", "lda_weight")
        assert [model["inputs"].pop(name) for name in names] == [0.0] * 4
        assert [other["inputs"].pop(name) for name in names] in ([0.0] * 4, [0.6, 0.5, 1.0, 1.0])
    elif path.stem in ("no_abs_delta", "no_lda"):
        name = f"{path.stem.removeprefix('no_')}_weight"
        assert (model["inputs"].pop(name), other["inputs"].pop(name)) in ((0.0, 0.0), (0.0, 1.0))
    elif change is None:
        assert (model.pop("beta"), other.pop("beta")) == (0.0, 0.1)
    else:
        part, name, settings = change
        changed, before = model.pop(part), other.pop(part)
        assert changed["class_path"].split(".")[-1] == name
        kept = (
            before["init_args"]
            if changed["class_path"] == before["class_path"]
            else {name: before["init_args"].get(name) for name in ("windows", "grid")}
        )
        for key, value in changed.get("init_args", {}).items():
            assert value == settings.get(key, kept.get(key))
    if path.stem == "tokens_512":
        assert (arm["data"]["sampling"].pop("frames"), plain["data"]["sampling"].pop("frames")) in ((128, 64), (128, 32))
    if path.stem == "extractor_clip":
        assert arm["data"]["sampling"].pop("size") == 336
        plain["data"]["sampling"].pop("size")
    assert arm == plain


@pytest.mark.parametrize("name", list(ADAPTERS))
@pytest.mark.parametrize("base", ["stage2_prompt.yaml", "stage2_small.yaml"])
def test_arms_change_the_adapter_and_nothing_else(base: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Above all not whether the projector is trained, which all arms of a comparison share."""
    path = FOLDER / "ablations" / f"{name}.yaml"
    assert path.read_text().startswith(("# Table ", "# Beyond the paper"))
    assert len(path.read_text().splitlines()) <= 6
    plain, arm = resolved(FOLDER / base, capsys), resolved(FOLDER / base, capsys, path)
    kind, settings, rate = ADAPTERS[name]
    before, after = (found["model"]["init_args"] for found in (plain, arm))
    adapter = after["reasoner"]["init_args"].pop("adapter")
    assert before["reasoner"]["init_args"].pop("adapter")["class_path"].endswith("DeepPrompts")
    assert adapter["class_path"].split(".")[-1] == kind
    assert adapter.get("init_args", {}) == settings
    if rate is not None:
        assert (after["optimizer"].pop("learning_rate"), before["optimizer"].pop("learning_rate") > rate) == (rate, True)
    if name == "adapter_none":  # nothing at all is trained
        assert [after["reasoner"]["init_args"].pop(key) for key in ("train_projector", "init_projector")] == [False, None]
        assert [before["reasoner"]["init_args"].pop(key) for key in ("train_projector", "init_projector")] == 2 * [
            base == "stage2_small.yaml"
        ]
    if name == "adapter_projector":
        assert after["reasoner"]["init_args"].pop("train_projector") is True
        assert before["reasoner"]["init_args"].pop("train_projector") is (base == "stage2_small.yaml")
    assert arm == plain


def test_trainer_for_full_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    """Given as --trainer, it wins over the stage's own."""
    files = [FOLDER / "stage2_prompt.yaml", FOLDER / "ablations" / "adapter_full.yaml"]
    overlay = ["--trainer", str(FOLDER / "trainer" / "gpu_full.yaml"), "--print_config"]
    with pytest.raises(SystemExit):
        main(["fit", *(argument for file in files for argument in ("--config", str(file))), *overlay])
    found = yaml.safe_load(capsys.readouterr().out)
    strategy = found["trainer"]["strategy"]
    assert strategy["class_path"].endswith("ModelParallelStrategy")
    assert strategy["init_args"]["data_parallel_size"] * strategy["init_args"]["tensor_parallel_size"] == found["trainer"]["devices"]
    assert (found["trainer"]["precision"], found["trainer"]["max_steps"]) == ("32-true", 50_000)
    assert found["model"]["init_args"]["reasoner"]["init_args"]["dtype"] == "bfloat16"


def test_paper_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Sec. IV-A: 256 tokens of width 1024, 2048 codes, batch 128, AdamW 1e-4, 200,000 steps; then 16 prompts, 2e-3, 50,000 steps."""
    first, second = (resolved(FOLDER / name, capsys) for name in ("stage1_vtem.yaml", "stage2_prompt.yaml"))
    vtem, tuning = first["model"]["init_args"], second["model"]["init_args"]
    assert vtem["pooler"]["init_args"]["windows"] * vtem["extractor"]["init_args"]["grid"] ** 2 == 256
    assert (vtem["event_dim"], vtem["quantizer"]["init_args"]["codes"], vtem["optimizer"]["learning_rate"]) == (1024, 2048, 1e-4)
    assert (first["data"]["batch_size"], first["trainer"]["max_steps"]) == (128, 200_000)
    assert (tuning["reasoner"]["init_args"]["adapter"]["init_args"]["tokens"], tuning["optimizer"]["learning_rate"]) == (16, 2e-3)
    assert (second["data"]["batch_size"], second["data"]["micro_batch_size"], second["trainer"]["max_steps"]) == (128, 8, 50_000)


def test_config_finds_shipped_files_and_names_missing_ones() -> None:
    assert Path(config("stage1_small.yaml")) == FOLDER / "stage1_small.yaml"
    with pytest.raises(UsageError, match=r"nothing\.yaml"):
        config("nothing.yaml")


@pytest.mark.parametrize("name", ["stage1_small.yaml", "lightning_configs/stage1_small.yaml", "./lightning_configs/stage1_small.yaml"])
def test_shipped_configurations_are_found_from_everywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their includes too: the model is one."""
    monkeypatch.chdir(tmp_path)
    found = resolved(Path(name), capsys, Path("ablations/codes_512.yaml"))
    assert found["model"]["init_args"]["quantizer"]["init_args"]["codes"] == 512
    assert found["data"]["sampling"]["frames"] == 32


def test_a_file_of_that_name_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located(["--config", "stage1_small.yaml", "--data.source.root", "x"])[1] == str(FOLDER / "stage1_small.yaml")
    assert located(["--model=model/vtem_small.yaml", "--model", "VTEMModule"]) == [
        f"--model={FOLDER / 'model' / 'vtem_small.yaml'}", "--model", "VTEMModule",
    ]  # fmt: skip
    (tmp_path / "stage1_small.yaml").write_text("seed_everything: 1\n")
    assert located(["-c", "stage1_small.yaml"]) == ["-c", "stage1_small.yaml"]
    assert located(["--config", "seed_everything: 1"]) == ["--config", "seed_everything: 1"]


@pytest.mark.parametrize("name", ["nothing.yaml", "lightning_configs/nothing.yaml", "../pyproject.toml", "/nowhere/stage1_small.yaml", "."])
def test_configurations_that_are_none_are_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff")
    monkeypatch.chdir(tmp_path)
    for given in (name, "picture.yaml"):
        assert main(["fit", "--config", given]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vtlvlm: {given}: ")
        assert said.count("\n") == 1


def test_configurations_are_listed_and_copied_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len([*FOLDER.rglob("*.yaml")])
    assert lines[0].startswith("stage1_small.yaml        ")
    assert any(line.startswith("ablations/fsq.yaml") and "rounded" in line for line in lines)
    there = tmp_path / "deep" / "mine"
    assert main(["configs", "--copy", str(there)]) == 0
    assert {p.relative_to(there) for p in there.rglob("*")} == {p.relative_to(FOLDER) for p in FOLDER.rglob("*")}
    assert resolved(there / "stage1_small.yaml", capsys)["data"]["sampling"]["frames"] == 32
    (there / "stage1_small.yaml").write_text("mine")
    assert main(["configs", "--copy", str(there)]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert (there / "stage1_small.yaml").read_text() == "mine"
