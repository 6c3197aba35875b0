"""What weights may be used with."""

import re
from pathlib import Path

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.stages.compatibility import module_hash, require_same_extractor, require_unseen_validation
from vtlvlm.vtem import TimmExtractor

MOBILE = "mobilenetv3_small_050"


def split(train: list[str], val: list[str], groups: bool = True) -> dict:
    """Of clips that are named after their people."""
    sides = {"train": train, "val": val, "test": ["P9"]}
    clips = {side: len(names) for side, names in sides.items()}
    return {
        "groups": sides if groups else None,
        "clips": clips,
        "val_hash": " ".join(val),
        "validation": 0.25,
        "seed": 3,
        "protocol": "csv",
    }


def test_validation_people_must_be_new() -> None:
    made = split(["P1", "P2"], ["P3"])
    for now in (made, split(["P1"], ["P3"]), split(["P1", "P2", "P3"], [])):  # also with less, or without any
        require_unseen_validation(made, now, "it")
    message = (
        "it was trained on clips that would validate it now (clips of P1, P2): set data.source.validation and data.seed as they were, "
    )
    with pytest.raises(UsageError, match=re.escape(message + "--data.source.validation 0.25 --data.seed 3")):
        require_unseen_validation(made, split(["P3"], ["P1", "P2"]), "it")
    many = [f"P{n}" for n in range(6)]
    with pytest.raises(UsageError, match=re.escape("(clips of P0, P1, P2, P3, ...)")):
        require_unseen_validation(split(many, []), split([], many), "it")


@pytest.mark.parametrize("groups", [(False, False), (False, True), (True, False)])
def test_validation_clips_without_people_must_be_the_same(groups: tuple[bool, bool]) -> None:
    made, same = split(["P1", "P2"], ["P3"], groups[0]), split(["P2"], ["P3"], groups[1])
    require_unseen_validation(made, same, "it")
    with pytest.raises(UsageError, match=re.escape("(other clips are left for validation)")):
        require_unseen_validation(made, split(["P3"], ["P1", "P2"], groups[1]), "it")


def test_a_table_may_have_the_same_people_on_both_sides() -> None:
    """Its ``val`` rows are what it says, even if their people also train."""
    made = split(["P1", "P2"], ["P1"])
    require_unseen_validation(made, split(["P1", "P2"], ["P1"]), "it")
    with pytest.raises(UsageError, match=r"clips of P2.*or the table's val rows$"):
        require_unseen_validation(made, split(["P1"], ["P2"]), "it")


def test_extractor_weights_are_compared(tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        extractor = TimmExtractor(MOBILE, image_size=32)
        extractor.build()
        files.append(tmp_path / f"{seed}.pth")
        torch.save(extractor.built().state_dict(), files[-1])
    one, two = (TimmExtractor(MOBILE, str(file), image_size=32) for file in files)
    made = one.fingerprint()
    require_same_extractor(TimmExtractor(MOBILE, str(files[0]), image_size=32), made, "it")
    with pytest.raises(UsageError, match=f"it was trained on features of an extractor with weights_sha256 {made['weights_sha256'][:8]}"):
        require_same_extractor(two, made, "it")
    require_same_extractor(TimmExtractor(MOBILE, str(files[1]), image_size=32, trainable=True), made, "it")  # its weights come after


def test_module_hash_tells_weights_apart() -> None:
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    two.load_state_dict(one.state_dict())
    assert module_hash(one) == module_hash(two)
    with torch.no_grad():
        two.bias[0] += 1
    assert module_hash(one) != module_hash(two)
