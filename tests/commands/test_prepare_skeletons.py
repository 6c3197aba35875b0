"""``vtlvlm prepare`` on a folder of ``.skeleton`` files."""

from pathlib import Path

import numpy as np
import pytest
from skeletons import moving_body, of_bodies

from vtlvlm.cli import main
from vtlvlm.skeleton.packed import open_recordings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two actions of three people, one of the actions with two bodies, and a file without bodies."""
    folder = tmp_path / "nturgb+d_skeletons"
    folder.mkdir()
    for person in (1, 2, 3):
        for action in (8, 58):
            random = np.random.default_rng(100 * person + action)
            bodies = {str(body): (0, moving_body(random, 10 * person)) for body in range(1 + (action == 58))}
            (folder / f"S003C001P{person:03}R001A{action:03}.skeleton").write_text(of_bodies(bodies, 10 * person))
    (folder / "S003C002P001R001A008.skeleton").write_text("1\n0\n")
    return folder


def test_recordings_and_report(root, capsys):
    assert main(["prepare", str(root), "--protocol", "xsub60"]) == 0
    out = capsys.readouterr().out
    assert "7 clips (NTU names), 6 usable, 60 classes" in out
    assert "frames a clip: 10 to 30, median 20; 120 frames" in out
    assert "picture" not in out
    assert "S003C002P001R001A008.skeleton: holds no body in any frame" in out
    assert "3 recordings of one body, 3 of two; joints: ntu25" in out
    (line,) = [line.split() for line in out.splitlines() if line.startswith("xsub60")]
    assert line[-3:] == ["4", "0", "2"]
    packed = root / ".vtlvlm/skeletons"
    assert len(open_recordings(packed)) == 6
    assert "3 recordings of one body" in (packed / "report.txt").read_text()
    assert main(["prepare", str(root), "--protocol", "xsub60"]) == 0
    assert capsys.readouterr().out == out


def test_another_folder_for_the_recordings(root, tmp_path, capsys):
    assert main(["prepare", str(root), "--output", str(tmp_path / "packed")]) == 0
    assert not (root / ".vtlvlm/skeletons").exists()
    assert len(open_recordings(tmp_path / "packed")) == 6
    assert "xsub60" in capsys.readouterr().out


def test_options_of_videos_are_refused(root, tmp_path, capsys):
    assert main(["prepare", str(root), "--fast"]) == 2
    assert "holds no videos, but skeletons: leave --transcode and --fast out" in capsys.readouterr().err
    assert main(["prepare", str(root), "--transcode", str(tmp_path / "copies")]) == 2
    for file in root.glob("*.skeleton"):
        file.write_text("1\n0\n")
    assert main(["prepare", str(root)]) == 1
    assert "none of its 7 files can be used" in capsys.readouterr().err
