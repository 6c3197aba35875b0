"""Which places stand for a code, and whether their pictures are what the extractor saw there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modules import data_of
from videos import block_clips

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import decode_sampled
from vtlvlm.dictionary.crops import CELL_PIXELS, KEPT, KeptEvents, Place, decode_crops, select_crops

GRID = 2


def batch(clips: list[int], view: int = 0) -> tuple[torch.Tensor, ...]:
    """Sentences of two windows of four cells, all of code 0."""
    rows = torch.tensor(clips)
    return torch.zeros(len(rows), 2, 4, dtype=torch.int64), torch.tensor([[1, 3]] * len(rows)), rows, torch.full_like(rows, view)


def test_few_clips_serve_many_codes() -> None:
    ids = np.full((4, 2, 2), 9)
    ids[0, :, 0] = 1  # clip 0: code 1 twice
    ids[1] = [[1, 2], [2, 2]]  # clip 1: both codes
    ids[2] = ids[1]  # another view of clip 1
    ids[3, 1, 1] = 1
    found = select_crops(ids, np.array([5, 6, 6, 7]), [1, 2, 4], each=2)
    assert found[1] == [Place(1, 1, 0, 0), Place(1, 0, 1, 0)]  # the second of two occurrences
    assert found[2] == [Place(2, 1, 1, 0)]  # once, although the clip has two views
    assert found[4] == []
    assert sum(map(len, select_crops(ids, np.array([5, 6, 6, 7]), [1, 2], most_clips=1).values())) == 2


def test_kept_clips_are_spread_over_the_epoch() -> None:
    kept = KeptEvents()
    for number in range(1000):
        kept.add(number, *batch([number]))
    clips = kept.column(2)
    assert KEPT // 2 <= len(clips) <= KEPT
    assert set(np.diff(clips)) == {kept.stride}
    assert clips[-1] >= 1000 - 2 * kept.stride


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = block_clips(tmp_path_factory.mktemp("exemplars"))
    found = data_of(root, sampling=FrameSampling(frames=8, size=64, views=2), validation=0, num_workers=0)
    found.setup("fit")
    return found


@pytest.mark.parametrize("view", [0, 1])
def test_pictures_are_cells_of_the_sampled_frames(data: Any, view: int) -> None:
    """Also of a training view, which is cut and mirrored; two frames a feature step: the second of step 3 is frame 7."""
    kept = KeptEvents()
    kept.add(0, *batch([0, 1], view))
    places = {0: [Place(0, 0, 1, 2), Place(0, 1, 0, 1)]}
    found = decode_crops(places, kept, data, GRID, frame_stride=2)
    assert found.note == ""
    for (picture, clip), (position, top, left) in zip(found.pictures[0], [(7, 1, 0), (3, 0, 1)], strict=True):
        name = str(data.index.name[clip])
        large = FrameSampling(frames=8, size=GRID * CELL_PIXELS, views=2)
        frame = decode_sampled(data.index.file(clip), large, view=view, name=name, seed=0).frames[position].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(picture, frame[top * CELL_PIXELS :, left * CELL_PIXELS :][:CELL_PIXELS, :CELL_PIXELS])
    assert (found.pictures[0][0][0] > 200).any() != (found.pictures[0][0][0] > 200).all()  # the block is in one part of it


def test_videos_that_are_gone_leave_a_line(data: Any, tmp_path: Path) -> None:
    kept = KeptEvents()
    kept.add(0, *batch([0, 1]))
    places = {0: [Place(0, 0, 0, 0), Place(0, 1, 0, 0)]}
    file = data.index.file(0)
    content = file.read_bytes()
    try:
        file.write_bytes(b"")
        found = decode_crops(places, kept, data, GRID, 1)
        assert [clip for _, clip in found.pictures[0]] == [1]
        assert found.note.startswith("1 of 2 videos cannot be decoded")
        assert file.name in found.note
    finally:
        file.write_bytes(content)
