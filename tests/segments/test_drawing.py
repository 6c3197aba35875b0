"""A copy of a video with its labels."""

from pathlib import Path

import av
import numpy as np
from videos import encode

from vtlvlm.segments.drawing import write_labelled
from vtlvlm.segments.timeline import Segment


def test_labels_are_drawn_while_they_last(tmp_path: Path) -> None:
    """The lower bar is dark with light text inside a segment; elsewhere, and above it, the picture stays."""
    source = encode(tmp_path / "film.mp4", np.full((50, 120, 160, 3), 128, np.uint8))
    write_labelled(
        source, [Segment("wave", 0.4, 0.8, 0.9), Segment("a very long name of an action " * 4, 1.2, 1.6, 0.5)], tmp_path / "out.mp4"
    )
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24").astype(int)) for frame in container.decode(video=0)]
    assert len(frames) == 50
    for time, picture in frames:
        low, high = picture[-10:], picture[:90]
        assert abs(high.mean() - 128) < 6
        if 0.4 <= time < 0.8 or 1.2 <= time < 1.6:
            assert np.median(low) < 60
            assert low.max() > 120
        else:
            assert abs(np.median(low) - 128) < 6
