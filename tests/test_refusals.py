"""Wrong use of the chain's commands: one line that names the culprit and the remedy, exit code 2 (use) or 1 (data), nothing changed."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pipeline import Pipeline
from tiny import tiny_llava
from videos import block_clips

from vtlvlm.commands import guard
from vtlvlm.errors import UsageError


def assert_refused(capsys: pytest.CaptureFixture[str], code: int, expected: int, *words: str) -> None:
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == expected, message
    assert message.startswith("vtlvlm: ")
    for word in words:
        assert word in message


def test_second_start_into_a_run_folder(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    before = chain.best1.stat().st_mtime_ns
    code = chain("fit", *chain.on_features, "--trainer.default_root_dir", chain.run1)
    assert_refused(capsys, code, 2, str(chain.run1), "already holds a run", "--ckpt_path", "--trainer.default_root_dir")
    assert chain.best1.stat().st_mtime_ns == before


def test_second_start_after_an_interruption_within_the_first_epoch(
    chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a validation has left a checkpoint by then: that one is named."""
    (tmp_path / "checkpoints").mkdir()
    best = Path(shutil.copy(chain.best2, tmp_path / "checkpoints"))
    code = chain("fit", *chain.on_events, "--trainer.default_root_dir", tmp_path)
    assert_refused(capsys, code, 2, f"--ckpt_path {best},")


def test_stage1_checkpoint_for_stage2(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain("test", *chain.on_events, "--trainer.default_root_dir", tmp_path, "--ckpt_path", chain.best1)
    assert_refused(capsys, code, 2, "best.ckpt", "stage 'vtem'", "stage 'prompt_tuning'")


def test_other_settings_than_the_checkpoint(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = ["--model.init_args.quantizer.init_args.codes", 7, "--ckpt_path", chain.best1, "--trainer.default_root_dir", tmp_path]
    code = chain("fit", *chain.on_features, *codes)
    assert_refused(capsys, code, 2, "quantizer.codes", "8", "7")


def test_projector_of_another_width(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = tiny_llava(tmp_path / "wide", event_dim=32)
    llava = ["--model.init_args.reasoner.init_args.llava.path", wide, "--trainer.default_root_dir", tmp_path / "run"]
    code = chain("fit", *chain.on_events, *llava)
    assert_refused(capsys, code, 2, "32", "16", "event_dim")


def test_cache_of_another_stage1(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [*chain.on_features, "--seed_everything", 4, "--trainer.default_root_dir", tmp_path / "other"]
    assert chain("fit", *other) == 0
    before = sorted((p.name, p.stat().st_mtime_ns) for p in chain.events.glob("*.safetensors"))
    checkpoint = tmp_path / "other" / "checkpoints" / "best.ckpt"
    capsys.readouterr()
    code = chain("tokenize", *chain.on_features, "--ckpt_path", checkpoint, "--output", chain.events)
    assert_refused(capsys, code, 1, str(chain.events), "vtem")
    assert sorted((p.name, p.stat().st_mtime_ns) for p in chain.events.glob("*.safetensors")) == before


def test_tokenize_with_other_settings_than_the_checkpoint(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint's would be used in silence."""
    codes = ["--model.init_args.quantizer.init_args.codes", 4, "--ckpt_path", chain.best1, "--output", tmp_path / "events"]
    assert_refused(capsys, chain("tokenize", *chain.on_features, *codes), 2, "quantizer.codes: 8 there, 4 asked for")
    assert not (tmp_path / "events").exists()


def test_extract_with_a_checkpoint(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain("extract", "--config", chain.stage1, "--ckpt_path", chain.best1, "--output", tmp_path / "features")
    assert_refused(capsys, code, 2, "leave --ckpt_path out")
    assert not (tmp_path / "features").exists()


def test_a_device_without_float64(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain("classify", "--device", "mps", "--model", chain.bundle, chain.root)
    assert_refused(capsys, code, 2, "device mps: has no float64", "use cpu")
    guard.require_float64(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))))
    with pytest.raises(UsageError, match=r"device mps:0: has no float64, which pooling needs; use --trainer\.accelerator cpu"):
        guard.require_float64(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("mps", 0))))


def test_stage1_of_another_split(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain("fit", *chain.on_events, "--data.source.protocol", "group", "--trainer.default_root_dir", tmp_path)
    assert_refused(capsys, code, 2, "xsub60", "group")


def test_stage1_goes_on_only_with_its_own_split(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a checkpoint would say that it has never seen clips which it was trained on."""
    root = block_clips(tmp_path / "videos", people=(1, 2, 4, 3, 6))
    there = ["--data.source.root", root, "--trainer.default_root_dir", tmp_path / "run", "--ckpt_path", chain.best1]
    for command in ("fit", "test"):
        assert_refused(capsys, chain(command, "--config", chain.stage1, *there), 2, "the checkpoint was trained on xsub60")


def test_stage1_is_not_validated_on_whom_it_was_trained_on(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--trainer.default_root_dir", tmp_path]
    assert chain("fit", *chain.on_features, *there, "--data.source.validation", 0, "--trainer.max_epochs", 1) == 0
    code = chain("validate", *chain.on_features, *there, "--ckpt_path", tmp_path / "checkpoints" / "last.ckpt")
    assert_refused(capsys, code, 2, "the checkpoint was trained on clips that would validate it now", "--data.source.validation 0")


def test_features_of_another_extractor(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["--model.init_args.extractor.init_args.image_size", 96, "--trainer.default_root_dir", tmp_path]
    code = chain("fit", *chain.on_features, *other)
    assert_refused(capsys, code, 2, str(chain.features), "image_size = 64", "96", "extract anew")


def test_stage2_on_what_its_stage1_was_not_trained_on(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features of another extractor; videos sampled in another way."""
    larger = ["--model.init_args.extractor.init_args.image_size", 96]
    assert chain("extract", "--config", chain.stage1, *larger, "--output", tmp_path / "features") == 0
    capsys.readouterr()
    start = ["--config", chain.stage2, "--model.init_args.vtem", chain.best1, "--trainer.default_root_dir", tmp_path / "run"]
    code = chain("fit", *start, "--data.features", tmp_path / "features")
    assert_refused(capsys, code, 2, str(tmp_path / "features"), "another extractor or sampling than stage 1 was trained on")
    code = chain("fit", *start, "--data.sampling.frames", 16)
    assert_refused(capsys, code, 2, "data.sampling: frames: 8 there, 16 asked for", "set the same")


def test_one_category(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = block_clips(tmp_path / "videos", people=(1, 2, 3))
    for path in root.glob("*A002_rgb.avi"):
        path.unlink()
    (root / "classes.txt").write_text("A001 fall down\n")
    more = ["--data.batch_size", 1, "--trainer.default_root_dir", tmp_path / "run"]
    code = chain("fit", *chain.on_events, "--data.source.root", root, *more)
    assert_refused(capsys, code, 2, "one category (fall down)", "two or more")


def test_empty_split(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain(
        "fit",
        "--config",
        chain.stage1,
        "--data.source.protocol",
        "xview60",
        "--data.source.validation",
        0,
        "--trainer.default_root_dir",
        tmp_path,
    )
    assert_refused(capsys, code, 1, "xview60", "train")


def test_batch_larger_than_the_set(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain("fit", *chain.on_events, "--data.batch_size", 64, "--trainer.default_root_dir", tmp_path)
    assert_refused(capsys, code, 2, "batch_size=64 in 64 passes", "training clips", "--data.batch_size")


def test_bad_video_is_named(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = block_clips(tmp_path / "videos")
    (root / "S001C001P001R001A001_rgb.avi").write_bytes(b"")
    code = chain("classify", "--model", chain.bundle, root / "S001C001P001R001A001_rgb.avi")
    assert code == 1
    assert "S001C001P001R001A001_rgb.avi" in capsys.readouterr().err


def test_no_checkpoint_for_test(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = chain("test", *chain.on_events, "--trainer.default_root_dir", tmp_path)
    assert_refused(capsys, code, 2, "--ckpt_path")


def test_unknown_command(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, chain("fitt"), 2, "fitt", "classify")
