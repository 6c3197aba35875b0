"""Checkpoints that are cut, flipped, foreign or hostile: one line in every command of the trainer, and nothing of theirs happens."""

import copy
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from events import EventRun

from vtlvlm.errors import UsageError
from vtlvlm.stages.checkpoints import examine, load_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    run = EventRun(tmp_path_factory.mktemp("attacked"))
    assert run("fit", "--trainer.logger", False) == 0
    return run


@pytest.fixture(scope="module")
def whole(trained: EventRun) -> Path:
    return trained.folder / "run" / "checkpoints" / "last.ckpt"


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def changed(whole: Path, path: Path, change: Any) -> Path:
    checkpoint = torch.load(whole, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def damaged(whole: Path, folder: Path) -> dict[str, Path]:
    """File by kind of damage."""
    content = whole.read_bytes()
    with zipfile.ZipFile(whole) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    middle = largest.header_offset + largest.file_size // 2
    files = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "cut at the end": content[:-1],
        "zeros": bytes(len(content)),
        "flipped in a tensor": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "text": b"no checkpoint at all",
        "pickle": pickle.dumps({"state_dict": {}}),
        "code": pickle.dumps(Payload(folder / "sprung")),
    }
    made = {}
    for name, data in files.items():
        (path := folder / f"{name}.ckpt").write_bytes(data)
        made[name] = path
    torch.save(Payload(folder / "sprung"), folder / "code2.ckpt")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.0"}, folder / "foreign.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    (folder / "folder.ckpt").mkdir()
    with zipfile.ZipFile(whole) as parts, zipfile.ZipFile(folder / "squeezed.ckpt", "w", zipfile.ZIP_DEFLATED) as squeezed:
        for part in parts.infolist():
            squeezed.writestr(part.filename, parts.read(part))
    return {**made, **{name: folder / f"{name}.ckpt" for name in ("code2", "foreign", "list", "folder", "squeezed", "missing")}}


def one_line(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("vtlvlm: ")]
    assert len(lines) == 1, err
    assert str(path) in lines[0]


def test_damaged_and_foreign_files_are_one_line(trained: EventRun, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = damaged(whole, tmp_path)
    for path in files.values():
        with pytest.raises(UsageError, match=r"^[^\n]*$") as found:
            examine(path)
        assert str(path) in str(found.value)
    for command, name in zip(("fit", "validate", "test", "predict"), ("cut", "flipped in a tensor", "code", "foreign"), strict=True):
        capsys.readouterr()
        assert trained(command, "--ckpt_path", files[name], run="elsewhere") == 2
        one_line(capsys, files[name])
    assert not (tmp_path / "sprung").exists()
    assert not (trained.folder / "elsewhere" / "config.yaml").exists()


def test_every_flipped_byte_is_noticed(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    parts = zipfile.ZipFile(whole).infolist()
    places = [part.header_offset + 200 for part in parts if part.file_size > 400]
    for place in places[:: max(1, len(places) // 8)]:
        (path := tmp_path / "flipped.ckpt").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UsageError, match="not a readable checkpoint"):
            load_checkpoint(path)


def test_hyper_parameters_change_no_configuration(trained: EventRun, whole: Path, tmp_path: Path) -> None:
    """Lightning's command line lets them replace the configured model, and imports the class path that it finds there."""
    (tmp_path / "sprung_module.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Model: pass\n")

    def spring(checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"] = {"_class_path": "sprung_module.Model", "reasoner": {"class_path": "sprung_module.Model"}}

    path = changed(whole, tmp_path / "a.ckpt", spring)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert trained("test", "--trainer.logger", False, "--ckpt_path", path, run="tested") == 0
        path = changed(
            whole,
            tmp_path / "b.ckpt",
            lambda c: c.update(hyper_parameters={"reasoner": {"instruction": {"class_path": "sprung_module.Model"}}}),
        )
        assert trained("test", "--trainer.logger", False, "--ckpt_path", path, run="tested") == 0
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_has_no_file_deleted(trained: EventRun, whole: Path, tmp_path: Path) -> None:
    """Lightning deletes the checkpoint that came before, by the name it finds in the state of its callback."""
    run = Path(shutil.copytree(trained.folder / "run", tmp_path / "run"))
    (victim := tmp_path / "thesis").mkdir()
    (victim / "text").write_text("years of work")
    place = run / "checkpoints"

    def spring(checkpoint: dict[str, Any]) -> None:
        for key, state in list(checkpoint["callbacks"].items()):
            if isinstance(state, dict) and "best_model_path" in state:
                bad = f"{place}/../../thesis"
                hostile = {"best_model_path": bad, "kth_best_model_path": bad, "last_model_path": bad, "dirpath": str(place)}
                score = torch.tensor(1e9)
                checkpoint["callbacks"][key] = {**state, **hostile, "best_k_models": {bad: score}, "kth_value": score}
                checkpoint["callbacks"]["ModelCheckpoint" + repr(MORE)] = copy.deepcopy(checkpoint["callbacks"][key])

    changed(whole, place / "last.ckpt", spring)
    own = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", 1, "--trainer.callbacks.dirpath", place]
    more = ["--trainer.default_root_dir", run, "--ckpt_path", "last", "--trainer.max_epochs", 3, "--trainer.logger", False]
    assert trained("fit", *more, *own) == 0
    assert (victim / "text").read_text() == "years of work"


MORE = {"monitor": None, "mode": "min", "every_n_train_steps": 1, "every_n_epochs": 0, "train_time_interval": None}


@pytest.mark.parametrize(
    "name", ["loops", "optimizer_states", "callbacks", "record", "provenance", "shapes", "version", "settings", "deep"]
)
def test_a_checkpoint_that_lacks_something_is_one_line(
    trained: EventRun, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def spring(checkpoint: dict[str, Any]) -> None:
        record = checkpoint["vtlvlm"]
        if name == "record":
            checkpoint["vtlvlm"] = {"stage": "prompt_tuning"}
        elif name == "provenance":
            record["provenance"] = {}
        elif name == "shapes":
            first = next(iter(checkpoint["state_dict"]))
            checkpoint["state_dict"][first] = torch.zeros(3, 5, 7)
        elif name == "version":
            checkpoint["pytorch-lightning_version"] = "not a version"
        elif name == "settings":
            record["settings"] = {"class_path": 3, "init_args": ["\x1b[31m"]}
        elif name == "deep":
            checkpoint["loops"] = {"fit_loop": {}}
        else:
            del checkpoint[name]

    path = changed(whole, tmp_path / "a.ckpt", spring)
    capsys.readouterr()
    assert trained("fit", "--ckpt_path", path, "--trainer.max_epochs", 3, "--trainer.logger", False, run="lacking") == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert len([line for line in err.splitlines() if line.startswith("vtlvlm: ")]) == 1, err
