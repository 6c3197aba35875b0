"""Stage 2 from stored hidden states: the same training as from events, and refusal where they are not what is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from events import EventRun
from modules import data_of
from pipeline import launch_pair
from videos import block_clips

from vtlvlm.callbacks.cache_writing import HiddenWriter
from vtlvlm.data.cache import EventCache
from vtlvlm.data.hidden_cache import HiddenCache, HiddenCacheWriter, open_sentences
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import DataError
from vtlvlm.stages.prompt_tuning import PromptTuningModule

REASONER = "--model.init_args.reasoner.init_args"
ADAPTER = f"{REASONER}.adapter.init_args"
UPPER = [f"{ADAPTER}.layers", "last:1", f"{ADAPTER}.std", 1.0]


class HiddenRun(EventRun):
    """An event run whose events are stored as hidden states, in ``hidden``, and trainings from both."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hidden = folder / "hidden"
        assert self.extract(*UPPER, "--verify") == 0

    def extract(self, *arguments: object, output: Path | None = None) -> int:
        return self.command("extract-hidden", "--config", self.config, "--output", output or self.hidden, *arguments)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> HiddenRun:
    return HiddenRun(tmp_path_factory.mktemp("hidden"))


def weights(run: EventRun, name: str) -> dict[str, torch.Tensor]:
    return PromptTuningModule.load_from_checkpoint(run.folder / name / "checkpoints" / "last.ckpt").state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="listwise"),
        pytest.param([f"{REASONER}.label_score", "pmi"], id="pmi", marks=pytest.mark.slow),
        pytest.param(["--model.init_args.objective", "generative"], id="generative", marks=pytest.mark.slow),
        pytest.param([f"{REASONER}.llava.gradient_checkpointing", "true"], id="checkpointing", marks=pytest.mark.slow),
    ],
)
def test_a_training_is_the_one_from_events(stored: HiddenRun, settings: list[str], request: pytest.FixtureRequest) -> None:
    """The same trained values after some steps; its checkpoint is tested and exported as any other."""
    name = request.node.callspec.id
    rate = ["--model.init_args.optimizer.learning_rate", 0.05, "--trainer.max_epochs", 3]
    for source, folder in (("events", stored.events), ("states", stored.hidden)):
        assert stored("fit", *UPPER, *settings, *rate, "--data.events", folder, run=f"{name}-{source}") == 0
    one, two = (weights(stored, f"{name}-{source}") for source in ("events", "states"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-4, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    found = []
    for source in ("events", "states"):
        best = stored.folder / f"{name}-{source}" / "checkpoints" / "best.ckpt"
        assert stored("test", *UPPER, *settings, "--ckpt_path", best, run=f"{name}-{source}") == 0
        found.append(json.loads((stored.folder / f"{name}-{source}" / "metrics.json").read_text())["metrics"]["nll"])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_the_cache_holds_what_the_first_layer_with_prompts_reads(stored: HiddenRun) -> None:
    """Of every training and validation clip, and of no test clip; a second run finds nothing to do."""
    cache = HiddenCache.open(stored.hidden)
    assert isinstance(open_sentences(stored.hidden), HiddenCache)
    events = EventCache.open(stored.events)
    assert isinstance(open_sentences(stored.events), EventCache)
    data = data_of(stored.root, validation=0.5, events=str(stored.events))
    data.prepare_data()
    data.setup("fit")
    learning = set(data.clip_names(np.union1d(data.split.train, data.split.val)))
    assert set(cache.names) == learning < set(events.names)
    assert (cache.events, cache.num_tokens, cache.event_dim, cache.dtype) == (events.hash, 6, 16, torch.float32)
    assert cache.provenance["first_layer"] == 2
    module = PromptTuningModule.load_from_checkpoint(fitted(stored))
    names = list(cache.names[:3])
    with torch.no_grad():
        expected = module.reasoner.states(events.vectors(events.rows(names)).float())
    torch.testing.assert_close(cache.states(cache.rows(names)), expected, atol=1e-5, rtol=1e-5)
    files = {path: path.stat().st_mtime_ns for path in stored.hidden.glob("*.safetensors")}
    assert stored.extract(*UPPER) == 0
    assert {path: path.stat().st_mtime_ns for path in stored.hidden.glob("*.safetensors")} == files


def fitted(run: HiddenRun) -> Path:
    """The checkpoint of a short training from hidden states."""
    name = "fitted"
    path = run.folder / name / "checkpoints" / "last.ckpt"
    if not path.exists():
        assert run("fit", *UPPER, "--data.events", run.hidden, run=name) == 0
    return path


def test_a_training_goes_on_from_the_other_source(stored: HiddenRun) -> None:
    there = fitted(stored)
    assert stored("fit", *UPPER, "--data.events", stored.events, "--trainer.max_epochs", 3, "--ckpt_path", there, run="fitted") == 0
    assert stored("validate", *UPPER, "--data.events", stored.hidden, "--ckpt_path", there, run="fitted") == 0


@pytest.mark.slow
def test_two_processes_store_and_train_like_one(stored: HiddenRun) -> None:
    """Each writes its own shards; with DDP, the weights after some steps are those of one process."""
    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.micro_batch_size", 1]
    output, rate = stored.folder / "two", ["--model.init_args.optimizer.learning_rate", 0.05]
    fit = ["fit", "--config", stored.config, *UPPER, *rate, "--trainer.default_root_dir"]
    launch_pair(
        ["extract-hidden", "--config", stored.config, *UPPER, "--output", output, *two],
        [*fit, stored.folder / "pair", "--data.events", output, *two],
    )
    assert {path.name.split("-")[1] for path in output.glob("hidden-*")} == {"r00000", "r00001"}
    one, both = HiddenCache.open(stored.hidden), HiddenCache.open(output)
    assert sorted(both.names) == sorted(one.names)
    names = list(one.names)
    torch.testing.assert_close(both.states(both.rows(names)), one.states(one.rows(names)), atol=1e-5, rtol=1e-5)
    assert stored("fit", *UPPER, *rate, "--data.events", stored.hidden, run="single") == 0
    alone, together = weights(stored, "single"), weights(stored, "pair")
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, atol=2e-4, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


OTHER: dict[str, tuple[list[Any], str]] = {
    "projector": ([*UPPER, f"{REASONER}.train_projector", "true"], "reasoner.train_projector: hidden states hold what the projector made"),
    "all layers": ([], "DeepPrompts trains the first layer, hidden states are the input of the first layer with prompts"),
    "lora": ([f"{REASONER}.adapter", "LoRA"], "LoRA trains the first layer"),
    "full": ([f"{REASONER}.adapter", "FullFineTuning"], "FullFineTuning trains the first layer"),
    "first layer": ([f"{ADAPTER}.layers", "last:2"], "made with first_layer = 2, expected 1"),
    "prompts": ([*UPPER, f"{ADAPTER}.tokens", 3], "made with prompt_tokens = 2, expected 3"),
    "instruction": ([*UPPER, f"{REASONER}.instruction.init_args.text", "What is it?"], "made with instruction."),
    "mean": ([*UPPER, f"{REASONER}.sentence_mean_weight", 0.5], "made with sentence_mean_weight = 0.0, expected 0.5"),
    "type": ([*UPPER, f"{REASONER}.llava.dtype", "bfloat16"], "made with dtype = 'float32', expected 'bfloat16'"),
    "parts": ([*UPPER, f"{REASONER}.llava.max_positions", 2], "max_positions: hidden states need the label tree in one pass"),
}


@pytest.mark.parametrize("other", OTHER)
def test_other_settings_are_refused_by_name(
    stored: HiddenRun, other: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the LLaVA is loaded."""
    settings, words = OTHER[other]
    monkeypatch.setattr("vtlvlm.lvlm.reasoner.load_llava", lambda *_, **__: pytest.fail("the LLaVA was loaded"))
    assert stored("fit", *settings, "--data.events", stored.hidden, run="refused") in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("vtlvlm: ") and "warning" not in line]) == 1


@pytest.mark.parametrize("command", ["test", "predict"])
def test_what_needs_test_clips_asks_for_the_events(stored: HiddenRun, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stored(command, *UPPER, "--data.events", stored.hidden, "--ckpt_path", fitted(stored), run="fitted") == 2
    assert "training and validation clips only: give the event cache (--data.events DIR)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--ckpt_path", "last"], "leave --ckpt_path out"),
        (["--data.events", "null"], "give the event cache with --data.events DIR"),
        (["--data.events", "HIDDEN"], "holds hidden states already"),
        ([f"{ADAPTER}.layers", "all"], "DeepPrompts trains the first layer"),
        ([f"{ADAPTER}.tokens", 0], "DeepPrompts trains no layer"),
        ([f"{ADAPTER}.tokens", 3], "made with prompt_tokens = 2, expected 3; name another folder"),
    ],
)
def test_extraction_refuses_what_it_cannot_store(
    stored: HiddenRun, settings: list[Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [stored.hidden if value == "HIDDEN" else value for value in settings]
    assert stored.extract(*UPPER, *given) in (1, 2)
    assert words in capsys.readouterr().err


def test_a_disk_without_room_is_found_before_the_weights_are_loaded(
    stored: HiddenRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("vtlvlm.lvlm.reasoner.load_llava", lambda *_, **__: pytest.fail("the LLaVA was loaded"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert stored.extract(*UPPER, output=tmp_path / "out") == 1
    assert "to write for 8 of 8 clips and views, 10 bytes free" in capsys.readouterr().err


def test_training_clips_in_all_views_and_validation_clips_in_the_plain_one(tmp_path: Path) -> None:
    data = data_of(block_clips(tmp_path, (1, 2, 4, 5, 3)), validation=0.5, sampling=FrameSampling(views=3))
    data.prepare_data()
    data.setup()
    keys = HiddenWriter(lambda *_: (None, 0)).keys_of(data)
    train, val = data.clip_names(data.split.train), data.clip_names(data.split.val)
    assert len(train) > 0 < len(val)
    assert sorted(keys) == sorted([(name, view) for name in train for view in range(3)] + [(name, 0) for name in val])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_stored_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    states = (torch.randn(5, 7, 4) * 1e3).to(dtype)
    keys = [(f"clip{n}", 0) for n in range(5)]
    with HiddenCacheWriter(tmp_path, {"dtype": name}) as writer:
        writer.add(keys[:3], states[:3], torch.zeros(3, 2, 2))
        writer.flush()
        writer.add(keys[3:], states[3:], torch.zeros(2, 2, 2))
    writer.finish(keys)
    cache = HiddenCache.open(tmp_path)
    found = cache.states(cache.rows(["clip4", "clip0"]))
    assert found.dtype == dtype
    assert torch.equal(found, states[[4, 0]])
    assert cache.verify(progress=False) == states.numel() * dtype.itemsize


def test_damaged_states_are_refused(tmp_path: Path) -> None:
    with HiddenCacheWriter(tmp_path, {"dtype": "bfloat16"}) as writer:
        with pytest.raises(DataError, match="b: its hidden states are not finite"):
            writer.add([("a", 0), ("b", 0)], torch.tensor([[[1.0]], [[torch.inf]]]), torch.zeros(2, 1, 2))
        writer.add([("a", 0)], torch.ones(1, 2, 2), torch.zeros(1, 1, 2))
    writer.finish([("a", 0)])
    meta = json.loads((tmp_path / "meta.json").read_text())
    for wrong in ("float32", "int8", None):
        meta["provenance"]["dtype"] = wrong
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(DataError, match=r"do not fit its description|its description lacks dtype"):
            HiddenCache.open(tmp_path)
