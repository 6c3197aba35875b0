"""Captions say what the rig knows of a clip."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vtlvlm.cli import main
from vtlvlm.synth.actions import ACTIONS
from vtlvlm.synth.captions import FORMS, NUMBERS, WORDS, captions_of, clips_of
from vtlvlm.synth.dataset import ClipSpec
from vtlvlm.synth.people import Person
from vtlvlm.synth.performance import J


def clip(action: int, subject: int = 1, camera: int = 1) -> ClipSpec:
    return ClipSpec(1, 1, camera, subject, 1, action)


def test_every_action_has_its_words() -> None:
    assert set(WORDS) == set(ACTIONS)
    for action in ACTIONS:
        found = captions_of(clip(action))
        assert len(set(found)) == FORMS
        assert not any("{" in text or "no times" in text for text in found)


@pytest.mark.parametrize("action", [6, 23, 24])
def test_the_hand_is_the_one_that_moves(action: int) -> None:
    """Left-handed people use the other hand or foot: the one that holds the box in the end, or that travels further."""
    seen = set()
    part = "foot" if action == 24 else "hand_tip"
    for subject in range(1, 25):
        one = clip(action, subject)
        performance = one.performance()
        tracks = {side: performance.joints[0][:, J[f"{part}_{side}"]] for side in ("left", "right")}
        if performance.box is None:
            working = max(tracks, key=lambda side: np.abs(np.diff(tracks[side], axis=0)).sum())
        else:
            working = min(tracks, key=lambda side: np.linalg.norm(tracks[side][-1] - performance.box[-1]))
        assert working == ("left" if Person.of(1, subject).left_handed else "right")
        assert all(f"the {working}" in text for text in captions_of(one))
        seen.add(working)
    assert seen == {"left", "right"}


@pytest.mark.parametrize("action", [10, 22, 23, 27, 58, 97])
def test_repetitions_are_those_of_the_movement(action: int) -> None:
    """Two people with other numbers of repetitions move at other rates; equal numbers give the same words."""
    numbers = {subject: clip(action, subject).performance().times for subject in range(1, 9)}
    assert set(numbers.values()) == ({2} if action == 27 else {3, 4} if action in (10, 23, 58) else {2, 3})
    for subject, times in numbers.items():
        assert all(NUMBERS[times] in text for text in captions_of(clip(action, subject)))


def test_waves_are_counted_by_crossings() -> None:
    """The raised hand crosses its middle twice in each wave, apart from the weak ends."""
    for subject in range(1, 7):
        performance = clip(23, subject).performance()
        timing = performance.timing
        hand = performance.joints[0][timing.start : timing.start + timing.duration, J[f"hand_tip_{performance.working[0]}"], 0]
        middle = hand[len(hand) // 5 : -len(hand) // 5]
        crossings = int((np.diff(np.sign(middle - middle.mean())) != 0).sum())
        assert abs(crossings - 2 * performance.times * 0.6) <= 1.5


def test_cameras_are_named_from_the_performers_side() -> None:
    """Camera 2 stands at the right hand of a person who faces the middle camera."""
    from vtlvlm.synth.scene import Camera, Setup

    setup = Setup.of(1, 1)
    performance = clip(27).performance()
    side = (performance.joints[0][0, J["hand_tip_right"]] - performance.joints[0][0, J["hand_tip_left"]])[[0, 2]]
    for camera, word in ((2, "right"), (3, "left")):
        towards = float(side @ Camera.of(setup, camera).position[[0, 2]])
        assert (towards > 0) == (word == "right")
        assert all(f"the {word}" in text for text in captions_of(clip(8, camera=camera)))


def test_the_command_writes_them_beside_the_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["synth", str(tmp_path / "set"), "--subjects", "1", "--actions", "8", "--cameras", "1", "3", "--workers", "1"]
    assert main(given) == 0
    assert not (tmp_path / "set" / "captions.csv").exists()
    assert main([*given, "--captions"]) == 0
    assert "6 captions in" in capsys.readouterr().out
    with (tmp_path / "set" / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["clip"] for row in rows} == {path.name.removesuffix("_rgb.avi") for path in (tmp_path / "set").rglob("*.avi")}
    clips = clips_of({"seed": 0, "clips": [{"name": rows[0]["clip"]}]})
    assert [row["caption"] for row in rows[:3]] == captions_of(clips[0])
    assert clips[0].name == rows[0]["clip"]


@pytest.mark.parametrize("more", [["--motion", "somewhere.npz"], ["--untrimmed", "1"]])
def test_other_sets_have_none(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", str(tmp_path / "set"), "--captions", *more]) == 2
    assert "--captions" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
