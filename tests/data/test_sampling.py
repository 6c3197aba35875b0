import numpy as np
import pytest

from vtlvlm.data.sampling import FrameSampling, random_in_segments, segment_centres
from vtlvlm.errors import UsageError


@pytest.mark.parametrize(
    ("num_frames", "num_segments", "expected"),
    [
        (8, 4, [1, 3, 5, 7]),
        (9, 3, [1, 4, 7]),
        (10, 4, [1, 3, 6, 8]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (2, 3, [0, 1, 1]),
        (1, 4, [0, 0, 0, 0]),
        (5, 1, [2]),
    ],
)
def test_segment_centres(num_frames: int, num_segments: int, expected: list[int]) -> None:
    assert segment_centres(num_frames=num_frames, num_segments=num_segments).tolist() == expected


@pytest.mark.parametrize(("num_frames", "num_segments"), [(100, 7), (5, 32), (32, 32), (1, 3)])
def test_random_frames_stay_in_their_segments(num_frames: int, num_segments: int) -> None:
    generator = np.random.default_rng(0)
    draws = np.stack([random_in_segments(num_frames=num_frames, num_segments=num_segments, generator=generator) for _ in range(200)])
    edges = np.arange(num_segments + 1) * num_frames / num_segments
    assert (draws >= np.floor(edges[:-1])).all()
    assert (draws < np.ceil(edges[1:])).all()
    assert (np.diff(draws, axis=1) >= 0).all()
    if num_frames > num_segments:
        assert all(len(np.unique(draws[:, i])) >= num_frames // num_segments for i in range(num_segments))


def test_nothing_to_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_frames=0"):
        segment_centres(num_frames=0, num_segments=4)


def test_view_zero_is_plain_and_others_are_seeded_by_name_and_number() -> None:
    sampling = FrameSampling(frames=4, size=8, views=3)
    plain = sampling.view(0, num_frames=40, name="a", seed=0)
    assert plain.indices.tolist() == [5, 15, 25, 35]
    assert plain[1:] == (False, 1.0, (0.0, 0.0))
    first, again = (sampling.view(1, num_frames=40, name="a", seed=0) for _ in range(2))
    assert first.indices.tolist() == again.indices.tolist()
    assert first[1:] == again[1:]
    assert first.flip
    assert 0.85 <= first.zoom <= 1
    assert not sampling.view(2, num_frames=40, name="a", seed=0).flip
    assert len({sampling.view(v, num_frames=40, name=n, seed=s).zoom for v in (1, 2) for n in "ab" for s in (0, 1)}) == 8


@pytest.mark.parametrize("setting", [{"frames": 0}, {"views": 0}, {"size": -1}, {"crop": "left"}])
def test_impossible_settings(setting: dict) -> None:
    with pytest.raises(UsageError):
        FrameSampling(**setting)
