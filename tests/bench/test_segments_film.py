"""A film that repeats a clip, and the figures of a short one."""

from pathlib import Path

import av
import numpy as np
import pytest
from videos import encode

from vtlvlm.bench import segments
from vtlvlm.cli import main
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import decode, probe


def test_a_film_repeats_its_clip_without_a_seam(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (120, 32, 32, 3), dtype=np.uint8)
    clip = encode(tmp_path / "clip.mp4", pictures, rate=30)  # 4 s
    film = segments._film(clip, tmp_path / "film.mp4", 1)
    info = probe(film)
    assert (info.frames, info.variable) == (15 * 120, False)
    assert info.duration == pytest.approx(60, abs=0.01)
    for number in (0, 77):
        one, other = (decode(film, [number + shift], size=32).frames for shift in (0, 7 * 120))
        assert (one == other).all()
    with av.open(str(film)) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_the_figures_of_a_short_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = encode(tmp_path / "clip.mp4", np.full((120, 64, 64, 3), 90, np.uint8), rate=30)
    monkeypatch.setattr(segments, "camera_clips", lambda work, videos: {"H.264": clip})
    monkeypatch.setattr(segments, "SAMPLING", FrameSampling(frames=2, size=32))
    rows, facts = segments.measure(tmp_path, None, 1)
    ratio, _, speed = rows
    assert facts == {"minutes": 1}
    assert ratio.value is not None
    assert 0 < ratio.value < 10
    assert speed.value is not None
    assert speed.value > 0
    assert "77 windows" in speed.note  # (60 - 3) / 0.75 + 1


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "segments", "--minutes", "0"]) == 2
    assert "--minutes 0" in capsys.readouterr().err
    assert main(["bench", "segments", "--repeats", "2"]) == 2
    assert main(["bench", "vtem", "--minutes", "2"]) == 2
    assert "--minutes: bench vtem takes --repeats, --work and --output" in capsys.readouterr().err
