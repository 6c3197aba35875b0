"""The windows of a video that plays are, to the bit, the clips that its parts would be as files; its times are those of ``decode``."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from videos import encode, moving_block

from vtlvlm.data.container import VideoError
from vtlvlm.data.playing import Frame, playing
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import decode, decode_sampled, probe
from vtlvlm.errors import UsageError
from vtlvlm.segments.windows import Grid, Window, windows

RATE = 10
SAMPLINGS = [
    FrameSampling(frames=5, size=24),
    FrameSampling(frames=7, size=24, crop="pad"),
    FrameSampling(frames=4, size=24, mode="dense", stride=3),
    FrameSampling(frames=6, size=24, mode="fps", fps=4.0),
    FrameSampling(frames=40, size=24),  # more frames than a window has
]


def lossless(path: Path, pictures: np.ndarray, rate: int = RATE) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (67, 36, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def film(pictures: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lossless(tmp_path_factory.mktemp("film") / "film.mkv", pictures)


def all_windows(path: Path, grid: Grid, sampling: FrameSampling) -> list[Window]:
    with playing(path, sampling) as video:
        return list(windows(video.frames, video.rate, grid, sampling))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_window_is_the_clip_of_the_part_as_a_file(sampling: FrameSampling, film: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    found = all_windows(film, Grid(2.0, 0.5), sampling)
    assert [one.start for one in found] == [0.5 * number for number in range(10)]  # the film has 6.7 s
    for one in found:
        first = round(RATE * one.start)
        part = lossless(tmp_path / f"{first}.mkv", pictures[first : first + 2 * RATE])
        expected = decode_sampled(part, sampling)
        assert torch.equal(one.clip.frames, expected.frames)
        torch.testing.assert_close(one.clip.times, expected.times, atol=2e-3, rtol=0)  # MKV rounds to milliseconds


def test_windows_depend_on_no_later_frame(film: Path) -> None:
    """Each is complete as soon as its last frame has been on display, and a shorter film has the same first windows."""
    grid, sampling = Grid(1.0, 0.3), SAMPLINGS[0]
    whole = all_windows(film, grid, sampling)
    seen = 0.0

    def watched(frames: Iterator[Frame]) -> Iterator[Frame]:
        nonlocal seen
        for frame in frames:
            seen = frame.time
            yield frame
            if frame.time > 4:
                return

    with playing(film, sampling) as video:
        for one, same in zip(windows(watched(video.frames), video.rate, grid, sampling), whole, strict=False):
            assert torch.equal(one.clip.frames, same.clip.frames)
            assert torch.equal(one.clip.times, same.clip.times)
            assert one.start + grid.clip <= seen + 1.6 / RATE


def test_only_shown_frames_are_scaled_and_each_once(film: Path) -> None:
    sampling, made = FrameSampling(frames=4, size=24), []

    def counted(frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            yield Frame(frame.time, lambda frame=frame: made.append(frame.time) or frame.picture())  # type: ignore[misc, func-returns-value]

    with playing(film, sampling) as video:
        found = list(windows(counted(video.frames), video.rate, Grid(2.0, 0.5), sampling))
    assert len(made) == len(set(made))
    assert len(made) < 20  # four of twenty a window, shared by windows that overlap: one every half second
    assert len(found) == 10


def test_a_film_shorter_than_a_window_has_none(film: Path) -> None:
    assert all_windows(film, Grid(7.0, 1.0), SAMPLINGS[0]) == []
    assert len(all_windows(film, Grid(6.7, 1.0), SAMPLINGS[0])) == 1


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_video_plays_with_the_times_and_pictures_of_decode(codec: str, tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", moving_block(23, falls=True, shade=40), codec=codec)
    sampling = FrameSampling(frames=4, size=32)
    expected = decode(path, range(23), size=32)
    with playing(path, sampling) as video:
        found = [(frame.time, frame.picture()) for frame in video.frames]
    assert np.array_equal(np.stack([picture for _, picture in found]), expected.frames.numpy())
    assert np.allclose([time for time, _ in found], expected.times, atol=1e-6)
    assert video.rate == pytest.approx(probe(path).fps)


def test_a_damaged_video_is_named(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", moving_block(23, falls=True, shade=40))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(VideoError, match=r"clip\.mp4"), playing(path, SAMPLINGS[0]) as video:
        list(video.frames)


@pytest.mark.parametrize(("clip", "hop"), [(0.0, 1.0), (2.0, 3.0), (2.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), (100.0, 1.0)])
def test_grids_that_make_no_windows(clip: float, hop: float) -> None:
    with pytest.raises(UsageError, match="clip="):
        Grid(clip, hop)


@pytest.mark.parametrize(("rate", "clip", "frames"), [(30, 3.0, 64), (15, 3.3, 32), (25, 0.05, 4), (1, 0.8, 8)])
def test_every_window_has_all_its_frames(rate: int, clip: float, frames: int) -> None:
    """Also where a window's end and the last picture's differ by a rounding, and where windows are shorter than a picture is shown."""
    played = [Frame(number / rate, lambda: np.zeros((8, 8, 3), np.uint8)) for number in range(20 * rate)]
    found = list(windows(iter(played), rate, Grid(clip, clip / 4), FrameSampling(frames=frames, size=8)))
    assert len(found) > 10
    assert {len(one.clip.frames) for one in found} == {frames}


def test_windows_too_short_for_anything_are_refused() -> None:
    with pytest.raises(UsageError, match=r"clip=0\.001: at least 0\.05 seconds"):
        Grid(0.001, 0.001)
