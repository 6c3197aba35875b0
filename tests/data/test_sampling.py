import numpy as np
import pytest

from vtlvlm.data.sampling import TEST_VIEWS, FrameSampling, random_in_segments, segment_centres, spaced
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


@pytest.mark.parametrize(
    ("num_frames", "stride", "start", "short", "expected"),
    [
        (20, 2, 0.0, "stretch", [0, 2, 4, 6]),
        (20, 2, 0.5, "stretch", [7, 9, 11, 13]),  # 13 places left, 14 positions, the 7th
        (20, 2, 1.0, "stretch", [13, 15, 17, 19]),
        (20, 2.5, 0.0, "hold", [0, 2, 5, 7]),
        (7, 2, 1.0, "hold", [0, 2, 4, 6]),  # just fits
        (5, 2, 0.5, "stretch", [0, 1, 3, 4]),
        (5, 2, 0.5, "hold", [0, 2, 4, 4]),
    ],
)
def test_pieces_of_a_clip(num_frames: int, stride: float, start: float, short: str, expected: list[int]) -> None:
    assert spaced(num_frames=num_frames, num_segments=4, stride=stride, start=start, short=short).tolist() == expected  # type: ignore[arg-type]


def test_frames_a_second_follow_the_clips_own_rate() -> None:
    sampling = FrameSampling(frames=4, mode="fps", fps=5)
    assert sampling.view(0, num_frames=31, name="a", seed=0, rate=25).indices.tolist() == [8, 13, 18, 23]
    assert sampling.view(0, num_frames=31, name="a", seed=0, rate=50).indices.tolist() == [0, 10, 20, 30]
    with pytest.raises(ValueError, match="stride"):
        sampling.view(0, num_frames=31, name="a", seed=0)


def test_test_views_are_every_time_with_every_crop() -> None:
    sampling = FrameSampling(frames=2, test_clips=2, test_crops=3)
    assert sampling.test_views == tuple(range(TEST_VIEWS, TEST_VIEWS + 6))
    views = [sampling.view(number, num_frames=40, name="a", seed=0) for number in sampling.test_views]
    assert [v.indices.tolist() for v in views] == [[5, 25]] * 3 + [[15, 35]] * 3
    assert [v.shift for v in views] == [(-1, -1), (0, 0), (1, 1)] * 2
    assert not any(v.flip or v.zoom < 1 for v in views)
    assert FrameSampling().test_views == (0,)


@pytest.mark.parametrize("setting", [{"mode": "all"}, {"fps": 0.0}, {"short": "loop"}, {"test_crops": 2}, {"crop": "pad", "test_crops": 3}])
def test_impossible_modes(setting: dict) -> None:
    with pytest.raises(UsageError):
        FrameSampling(**setting)
