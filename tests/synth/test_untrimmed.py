"""Long rendered videos: their truth against the pictures, and their joins."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from vtlvlm.cli import main
from vtlvlm.data.video import decode, probe
from vtlvlm.errors import UsageError
from vtlvlm.segments.formats import read_truth
from vtlvlm.synth.scene import FPS
from vtlvlm.synth.untrimmed import BLEND, FOLLOWS, IDLE, LAST, STILL, SUITABLE, FilmSpec, generate_untrimmed, programme


def test_programmes() -> None:
    """Every follower comes right after its action, a fall comes last, all actions come before one comes again, and none is preferred."""
    rng, counts = np.random.default_rng(0), Counter()
    for parts in (1, 2, 5, 8, 30):
        for _ in range(300):
            found = programme(SUITABLE, parts, rng)
            assert parts <= len(found) <= parts + 1
            assert LAST not in found[:-1]
            for place, action in enumerate(found):
                if action in FOLLOWS:
                    assert found[place + 1] == FOLLOWS[action]
                if action in FOLLOWS.values():
                    assert FOLLOWS[found[place - 1]] == action
            once = [action for action in found if action != LAST][: len(SUITABLE) - 1]
            assert len(set(once)) == len(once)
            counts.update(found if parts == 5 else [])
    others = [counts[action] for action in SUITABLE if action != LAST]
    assert max(others) < 1.35 * min(others)
    assert programme(SUITABLE, 0, rng) == []
    assert programme([LAST], 3, rng) == [LAST]


def test_the_truth_is_where_the_body_moves() -> None:
    """Within a segment of a wave the hand travels far; in the idle time it sways."""
    spec = FilmSpec(seed=3, subject=2, camera=1, number=1, actions=(10, 23), parts=4)
    performance, parts = spec.performance()
    assert Counter(one.action for one in parts) == {10: 2, 23: 2}
    hands = performance.joints[0][:, [7, 11]]
    speed = np.linalg.norm(np.diff(hands, axis=0), axis=-1).max(1) * FPS
    inside = np.zeros(len(speed), dtype=bool)
    for part in parts:
        inside[round(part.start * FPS) : round(part.end * FPS) - 1] = True
    assert np.median(speed[inside]) > 10 * np.median(speed[~inside])
    assert all(before.end + 2 * IDLE[0] / FPS <= after.start for before, after in pairwise(parts))
    assert performance.timing.frames == len(performance.joints[0])


def test_joins_are_smooth_and_keep_the_place() -> None:
    """No joint moves faster at a join than in an action, and feet stay where they are."""
    spec = FilmSpec(seed=5, subject=7, camera=1, number=1, actions=SUITABLE, parts=9)
    performance, parts = spec.performance()
    speed = np.linalg.norm(np.diff(performance.joints[0], axis=0), axis=-1).max(1) * FPS
    inside = np.zeros(len(speed), dtype=bool)
    for part in parts:
        inside[max(0, round(part.start * FPS) - 1) : round(part.end * FPS)] = True
    assert speed[~inside].max() < 1.5
    jumps = np.abs(np.diff(performance.jacket[0], axis=0)).max(1)
    assert jumps[~inside].max() <= 2.0 / BLEND


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "synth",
        tmp_path / "long",
        "--untrimmed",
        1,
        "--people",
        3,
        "--parts",
        2,
        "--seed",
        1,
        "--actions",
        10,
        22,
        23,
        "--unlisted",
        23,
    ]
    assert main([str(word) for word in (*words, "--workers", 1)]) == 0
    assert "1 videos of 1 people" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "long" / "synth.json").read_text())
    truth = json.loads((tmp_path / "long" / "truth.json").read_text())["database"]
    (film,) = manifest["videos"]
    file = tmp_path / "long" / "videos" / f"{film['name']}.mp4"
    assert probe(file).frames == film["frames"]
    with av.open(str(file)) as container:
        assert "mp4" in container.format.name.split(",")  # as its name says, for players that go by it
    assert truth[film["name"]]["duration"] == pytest.approx(film["frames"] / FPS, abs=1e-3)
    labels = [row["label"] for row in (*truth[film["name"]]["annotations"], *film["unlisted"])]
    assert len(labels) == 2
    assert {row["label"] for row in film["unlisted"]} <= {"hand waving"}
    assert "hand waving" not in (tmp_path / "long" / "classes.txt").read_text()
    assert [one.label for one in read_truth(tmp_path / "long" / "truth.json")[file.stem]] == [
        row["label"] for row in truth[film["name"]]["annotations"]
    ]
    before = file.stat().st_mtime_ns
    assert main([str(word) for word in words]) == 0
    assert file.stat().st_mtime_ns == before
    words[words.index("--parts") + 1] = 3
    assert main([str(word) for word in words]) == 2
    assert "made with parts 2 and not 3" in capsys.readouterr().err


def test_idle_people_hardly_move(tmp_path: Path) -> None:
    manifest = generate_untrimmed(tmp_path, people=[3], parts=0, seed=1, workers=1, progress=False)
    (film,) = manifest["videos"]
    assert film["frames"] == STILL * FPS
    assert read_truth(tmp_path / "truth.json") == {film["name"]: []}
    pictures = decode(tmp_path / "videos" / f"{film['name']}.mp4", [0, 300, 600], size=64).frames.float()
    assert float((pictures[1:] - pictures[:-1]).abs().mean()) < 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"people": []}, "at least one"),
        ({"people": [3], "actions": [6]}, "action 6: cannot be rendered"),
        ({"people": [3], "actions": [8]}, "belong together"),
        ({"people": [3], "parts": 201}, "from 0, for an idle person"),
        ({"people": [3], "cameras": [4]}, "camera 4"),
        ({"people": [101]}, "subjects 101"),
    ],
)
def test_refusals(settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        generate_untrimmed(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_settings_of_other_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", str(tmp_path / "a"), "--parts", "3"]) == 2
    assert "--parts: only with --untrimmed" in capsys.readouterr().err
    assert main(["synth", str(tmp_path / "a"), "--untrimmed", "1", "--subjects", "3"]) == 2
    assert "--subjects is not for --untrimmed" in capsys.readouterr().err
