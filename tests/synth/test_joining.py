"""Clips joined into films: what the films show and when, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from videos import encode

from vtlvlm.cli import main
from vtlvlm.data.video import decode, probe
from vtlvlm.segments.formats import read_truth

SHADES = {1: 40, 2: 90, 3: 140, 4: 200}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two people, each with three actions of a second at 25 pictures a second. A picture's shade is its action's, and its number."""
    root = tmp_path / "clips"
    root.mkdir()
    for person in (1, 2):
        for action in (1, 2, 3):
            pictures = np.stack([np.full((64, 48 + 32 * (action == 3), 3), SHADES[action] + number, np.uint8) for number in range(25)])
            encode(root / f"S001C001P{person:03d}R001A{action:03d}_rgb.avi", pictures, rate=25)
    (root / "classes.txt").write_text("A001 one\nA002 two\nA003 three\n")
    return root


def joined(clips: Path, to: Path, *more: object) -> int:
    return main([str(word) for word in ("synth", to, "--untrimmed", 1, "--clips", clips, "--workers", 1, *more)])


def test_a_film_shows_its_clips_at_the_times_of_the_truth(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each clip from its first shade to its last one, and a held picture before and after it."""
    assert joined(clips, tmp_path / "long", "--people", 2, "--unlisted", 2) == 0
    assert "1 videos, 0." in capsys.readouterr().out
    film = tmp_path / "long" / "videos" / "S001C001P002N01.mp4"
    manifest = json.loads((tmp_path / "long" / "synth.json").read_text())
    info, (described,) = probe(film), manifest["videos"]
    assert (info.frames, info.fps) == (described["frames"], 25)
    truth = read_truth(tmp_path / "long" / "truth.json")
    assert truth.keys() == {film.stem}
    segments = {one.label: (one.start, one.end) for one in truth[film.stem]}
    hidden = {one["label"]: tuple(one["segment"]) for one in described["unlisted"]}
    assert (segments.keys(), hidden.keys()) == ({"one", "three"}, {"two"})
    assert (tmp_path / "long" / "classes.txt").read_text() == "A001 one\nA003 three\n"
    shades = decode(film, range(info.frames), size=64, crop="pad").frames.float().mean(1)[:, 24:40, 28:36].mean((1, 2))
    order = sorted((*segments.items(), *hidden.items()), key=lambda one: one[1])
    ends = [0, *(round(end * 25) for _, (_, end) in order)]
    for number, (label, (start, end)) in enumerate(order):
        first, last = round(start * 25), round(end * 25)
        assert last - first == 25
        shade = SHADES[("one", "two", "three").index(label) + 1]
        assert shades[first:last].numpy() == pytest.approx(shade + np.arange(25), abs=4)
        before = shades[ends[number] : first]
        assert len(before) >= 0.5 * 25 * (1 + (number > 0)) - 1  # of the clip before, too
        assert float(before[-6]) == pytest.approx(shade, abs=4)  # held
    assert float(shades[-1]) == pytest.approx(float(shades[last - 1]), abs=4)


def test_the_same_seed_gives_the_same_films_and_a_finished_folder_stays(clips: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert joined(clips, tmp_path / name, "--seed", seed, "--parts", 2) == 0
    films = {name: [file.read_bytes() for file in sorted((tmp_path / name / "videos").iterdir())] for name in "abc"}
    assert len(films["a"]) == 2
    assert films["a"] == films["b"] != films["c"]
    assert all(len(one) == 2 for one in read_truth(tmp_path / "a" / "truth.json").values())
    (first, _) = sorted((tmp_path / "a" / "videos").iterdir())
    before = first.stat().st_mtime_ns
    assert joined(clips, tmp_path / "a", "--parts", 2) == 0
    assert first.stat().st_mtime_ns == before


def test_clips_in_folders_of_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them in one film, if they have no names that say who is in them. A turned or larger clip fits into the first one's size."""
    for label, size in (("walk", (64, 48)), ("run", (40, 90))):
        (tmp_path / "clips" / label).mkdir(parents=True)
        encode(tmp_path / "clips" / label / "a.mp4", np.full((10, *size, 3), 128, np.uint8), rate=10)
    assert joined(tmp_path / "clips", tmp_path / "none", "--people", 1) == 2
    assert "have no NTU names" in capsys.readouterr().err
    assert joined(tmp_path / "clips", tmp_path / "long") == 0
    (film,) = (tmp_path / "long" / "videos").iterdir()
    assert film.name == "clipsN01.mp4"
    assert {one.label for one in read_truth(tmp_path / "long" / "truth.json")["clipsN01"]} == {"walk", "run"}
    assert (probe(film).width, probe(film).height) in ((48, 64), (90, 40))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--people", "9"], "--people 9: not in"),
        (["--actions", "77"], "--actions 77: not in"),
        (["--unlisted", "8"], "--unlisted 8: not in"),
        (["--cameras", "1"], "--cameras is not for --clips"),
        (["--parts", "0"], "parts 0"),
    ],
)
def test_what_is_refused(words: list[str], said: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert joined(clips, tmp_path / "long", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "long").exists()


def test_other_refusals(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert joined(tmp_path / "none", tmp_path / "long") == 2
    assert "no such folder" in capsys.readouterr().err
    assert joined(clips, clips / "long") == 2
    capsys.readouterr()
    assert main(["synth", str(tmp_path / "x"), "--clips", str(clips)]) == 2
    assert "--clips: only with --untrimmed" in capsys.readouterr().err
    assert joined(clips, tmp_path / "long") == 0
    capsys.readouterr()
    assert joined(clips, tmp_path / "long", "--parts", 1) == 2
    assert "made with parts 8 and not 1" in capsys.readouterr().err
    (clips / "S001C001P001R001A001_rgb.avi").write_bytes(b"RIFF0000AVI broken")
    assert joined(clips, tmp_path / "other", "--people", 1) == 1
    said = capsys.readouterr().err
    assert "S001C001P001R001A001_rgb.avi" in said
    assert said.count("\n") == 1
