from pathlib import Path

import numpy as np
import pytest
import torch
from modules import data_of

from vtlvlm.batches import VideoBatch
from vtlvlm.data.augment import ClipAugmentation
from vtlvlm.data.sampling import TEST_VIEWS, FrameSampling
from vtlvlm.errors import UsageError

STRONG = ClipAugmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, grayscale=0.2, blur=0.5, erase=0.5)


def still(clips: int, frames: int = 4) -> torch.Tensor:
    """(B, T, 3, 16, 16): every clip the same picture, in every frame."""
    picture = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 16, 16), dtype=np.uint8))
    return picture.expand(clips, frames, 3, 16, 16)


def test_all_frames_of_a_clip_are_changed_alike_and_clips_differently() -> None:
    changed = STRONG(still(6), [f"clip{i}" for i in range(6)])
    assert changed.dtype == torch.uint8
    assert (changed == changed[:, :1]).all()
    assert len({clip.numpy().tobytes() for clip in changed}) == 6
    assert not (changed == still(6)).flatten(1).all(1).any()


def test_what_is_drawn_depends_on_the_clip_alone() -> None:
    state = torch.random.get_rng_state()
    together = STRONG(still(3), ["a", "b", "c"])
    alone = STRONG(still(1), ["b"])
    assert torch.equal(together[1], alone[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_brightness_by_hand() -> None:
    grey = torch.full((1, 2, 3, 8, 8), 100, dtype=torch.uint8)
    level = [int(ClipAugmentation(brightness=0.5)(grey, [str(i)])[0, 0, 0, 0, 0]) for i in range(50)]
    assert 50 <= min(level) < 65
    assert 135 < max(level) <= 150
    assert torch.equal(ClipAugmentation()(still(2), ["a", "b"]), still(2))


@pytest.mark.parametrize(("name", "value"), [("hue", 0.6), ("erase", 1.1), ("brightness", -0.1)])
def test_impossible_settings(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"augmentation: {name}={value}"):
        ClipAugmentation(**{name: value})


def test_only_training_views_are_changed(ntu_tree: Path) -> None:
    data = data_of(ntu_tree, "xsub60", sampling=FrameSampling(frames=4, size=16, views=2), validation=0, augmentation=STRONG)
    data.setup("test")
    views = torch.tensor([0, 1, TEST_VIEWS])
    batch = VideoBatch(still(3), torch.zeros(3, 4), torch.zeros(3), torch.tensor([0, 0, 0]), views)
    changed = data.on_after_batch_transfer(batch, 0).frames
    assert (changed == still(3)).flatten(1).all(1).tolist() == [True, False, True]
    assert torch.equal(data.on_after_batch_transfer(batch, 0).frames, changed)
    with pytest.raises(UsageError, match=r"set sampling\.views to 2 or more"):
        data_of(ntu_tree, "xsub60", augmentation=STRONG)
    plain = data_of(ntu_tree, "xsub60", validation=0)
    assert plain.on_after_batch_transfer(batch, 0) is batch
