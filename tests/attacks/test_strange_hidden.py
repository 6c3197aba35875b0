"""Hidden states of a stranger or of a failing disk: one line that names the folder or file, before the LLaVA is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from events import EventRun

from vtlvlm.data.hidden_cache import HiddenCache, HiddenCacheWriter

LAYERS = ["--model.init_args.reasoner.init_args.adapter.init_args.layers", "last:1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    """An event run with its hidden states."""
    made = EventRun(tmp_path_factory.mktemp("hidden"))
    assert made.command("extract-hidden", "--config", made.config, "--output", made.folder / "hidden", *LAYERS) == 0
    return made


def provenance(**change: object) -> Callable[[Path], None]:
    """Other values in the description; None removes one."""

    def damage(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        meta["provenance"] = {key: value for key, value in (meta["provenance"] | change).items() if value is not None}
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


def cut(folder: Path) -> None:
    path = next(folder.glob("hidden-*"))
    path.write_bytes(path.read_bytes()[:-8])


def without_rows(folder: Path) -> None:
    next(folder.glob("rows-*")).unlink()


def renamed(folder: Path) -> None:
    path = next(folder.glob("hidden-*"))
    path.rename(path.with_name(path.name.replace("hidden", "vectors")))


def narrow(folder: Path) -> None:
    """States of another shape under the same description."""
    cache = HiddenCache.open(folder)
    keys = list(zip(cache.names.tolist(), cache.views.tolist(), strict=True))
    for path in folder.glob("*-r*.safetensors"):
        path.unlink()
    with HiddenCacheWriter(folder, cache.provenance) as writer:
        writer.add(keys, torch.zeros(len(keys), 3, 5), torch.zeros(len(keys), 1, 2))
    writer.finish(keys)


def huge(folder: Path) -> None:
    with (folder / "meta.json").open("ab") as file:
        file.truncate(1 << 40)  # a file with a hole


DAMAGE = {
    "cut": cut,
    "without rows": without_rows,
    "renamed": renamed,
    "narrow": narrow,
    "huge description": huge,
    "kind of numbers": lambda folder: (folder / "meta.json").write_text(json.dumps({"kind": 7, "version": 2})),
    "no tokens": provenance(num_tokens=None),
    "many tokens": provenance(num_tokens="many"),
    "huge tokens": provenance(num_tokens=10**12),
    "no type": provenance(dtype=None),
    "another type": provenance(dtype="float16"),
    "no events": provenance(events=None),
    "no stage 1": provenance(vtem_hash=None),
    "another split": provenance(train_hash="0" * 32),
    "another LLaVA": provenance(llava={"config": "0", "weights": "1"}),
    "no instruction": provenance(instruction=None),
    "nested": provenance(instruction=[[]]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_is_one_line(
    run: EventRun, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hidden"
    shutil.copytree(run.folder / "hidden", folder)
    DAMAGE[damage](folder)
    monkeypatch.setattr("vtlvlm.lvlm.reasoner.load_llava", lambda *_, **__: pytest.fail("the LLaVA was loaded"))
    capsys.readouterr()
    assert run("fit", *LAYERS, "--data.events", folder, run="strange") in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtlvlm: ") and "warning" not in line]
    assert str(folder) in line or damage in ("huge tokens", "another split")
    assert "defect" not in line


def test_undamaged_states_are_trained_from(run: EventRun) -> None:
    assert run("fit", *LAYERS, "--data.events", run.folder / "hidden", run="whole") == 0
