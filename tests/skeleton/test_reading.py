"""Reading of ``.skeleton`` files and the choice of bodies, against explicit loops over lines, frames and joints."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from skeletons import REAL_IDS, moving_body, of_bodies, skeleton_file

from vtlvlm.errors import DataError
from vtlvlm.skeleton.reading import MOST_BYTES, Skeletons, choose_bodies, parse, read_skeleton
from vtlvlm.synth.dataset import ClipSpec
from vtlvlm.synth.scene import Camera, Setup
from vtlvlm.synth.skeleton import skeleton_text

FILE = Path("S001C001P001R001A001.skeleton")


def chosen(text: str) -> Skeletons:
    return choose_bodies(parse(text.encode(), FILE))


# -- numbers -----------------------------------------------------------------------------------------------------------------------


def line_by_line(text: str) -> list[dict[str, np.ndarray]]:
    """For each frame, id -> (25, 12)."""
    lines = iter(text.splitlines())
    frames = []
    for _ in range(int(next(lines))):
        bodies = {}
        for _ in range(int(next(lines))):
            name = next(lines).split()[0]
            bodies[name] = np.array([[float(word) for word in next(lines).split()] for _ in range(int(next(lines)))])
        frames.append(bodies)
    return frames


@pytest.mark.parametrize("action", [8, 58])
def test_what_the_renderer_writes_is_read(action):
    spec = ClipSpec(0, 1, 2, 1, 1, action)
    performance, camera = spec.performance(), Camera.of(Setup.of(0, 1), 2)
    text = skeleton_text(performance, camera)
    records = parse(text.encode(), FILE)
    slow = line_by_line(text)
    assert len(records.ids) == (2 if action == 58 else 1)
    for row, (frame, body) in enumerate(zip(records.frame, records.body, strict=True)):
        values = slow[frame][records.ids[body]]
        np.testing.assert_allclose(records.joints[row], values[:, :3], rtol=1e-6)
        np.testing.assert_allclose(records.pixels[row], values[:, 5:7], rtol=1e-6)
        np.testing.assert_array_equal(records.tracked[row], values[:, 11])
    read = chosen(text)
    assert read.joints.shape == performance.joints.shape
    seen = np.stack([camera.see(performance.joints)[place] for place in range(len(performance.people))])
    order = [0] if len(seen) == 1 else np.argsort([np.abs(read.joints[0] - one).max() for one in seen])
    np.testing.assert_allclose(read.joints, seen[order], atol=2e-6)


def test_ids_that_are_one_float_are_two_bodies():
    assert len({float(name) for name in REAL_IDS}) == 1
    random = np.random.default_rng(0)
    one, other = moving_body(random, 20, 0.2), moving_body(random, 20, 0.1)
    frames = [[(REAL_IDS[0], one[t]), (REAL_IDS[1], other[t])][:: 1 if t % 2 else -1] for t in range(20)]  # their order changes
    read = chosen(skeleton_file(frames))
    np.testing.assert_array_equal(read.joints, np.stack([one, other]).astype(np.float32))
    np.testing.assert_array_equal(read.pixels[1, 7, :, 0], 960 + np.arange(25))
    np.testing.assert_array_equal(read.tracked[0, 3], np.arange(25) % 3)


def test_frames_without_bodies_are_dropped():
    body = moving_body(np.random.default_rng(0), 3)
    read = chosen(skeleton_file([[], [("7", body[0])], [], [("7", body[1])], [("7", body[2])], []]))
    np.testing.assert_array_equal(read.joints, body[None].astype(np.float32))


def test_unknown_pixels_are_nan():
    text = of_bodies({"7": (0, moving_body(np.random.default_rng(0), 2))}, 2)
    text = text.replace(" 960 540 ", " NaN NaN ", 1).replace(" 961 539 ", " -Infinity -1e400 ", 1)
    read = chosen(text)
    assert np.isnan(read.pixels[0, 0, :2]).all()
    assert np.isfinite(read.pixels[0, 0, 2:]).all()


@pytest.mark.parametrize(("old", "new"), [("\n", "\r\n"), (" ", "  "), ("\n", " \n"), (" ", "\t")])
def test_other_white_space_is_read_alike(old, new):
    text = of_bodies({name: (0, moving_body(np.random.default_rng(seed), 4)) for seed, name in enumerate(REAL_IDS)}, 4)
    for ours, theirs in zip(chosen(text.replace(old, new)), chosen(text), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_on_the_disk(tmp_path):
    text = of_bodies({"7": (0, moving_body(np.random.default_rng(0), 2))}, 2)
    file = tmp_path / FILE
    file.write_text(text.rstrip("\n"))  # without the last line feed
    np.testing.assert_array_equal(read_skeleton(file).joints, chosen(text).joints)
    with pytest.raises(DataError, match=r"absent\.skeleton: cannot be read \(No such file or directory\)"):
        read_skeleton(tmp_path / "absent.skeleton")


# -- the choice of bodies ----------------------------------------------------------------------------------------------------------


def usual_choice(text: str) -> np.ndarray:
    """(M, T, 25, 3) by explicit loops."""
    bodies: dict[str, dict] = {}
    frames = 0
    for found in line_by_line(text):
        for name, values in found.items():
            bodies.setdefault(name, {"start": frames, "joints": []})["joints"].append(values[:, :3])
        frames += bool(found)
    for body in bodies.values():
        body["joints"] = np.array(body["joints"])
        body["motion"] = sum(np.var([joint[axis] for frame in body["joints"] for joint in frame]) for axis in range(3))
    if len(bodies) > 1 and any(len(body["joints"]) > 11 for body in bodies.values()):
        bodies = {name: body for name, body in bodies.items() if len(body["joints"]) > 11}
    for name in list(bodies):
        if len(bodies) == 1:
            break
        body = bodies[name]
        good = [f for f in body["joints"] if f[:, 0].max() - f[:, 0].min() <= 0.8 * (f[:, 1].max() - f[:, 1].min())]
        bad = len(body["joints"]) - len(good)
        if bad and bad / len(body["joints"]) >= 0.69754:
            del bodies[name]
        elif bad:
            body["motion"] = min(body["motion"], sum(np.var([joint[axis] for frame in good for joint in frame]) for axis in range(3)))
    ranked = sorted(bodies.values(), key=lambda body: -body["motion"])
    out = np.zeros((2, frames, 25, 3))
    spans = [[ranked[0]["start"], ranked[0]["start"] + len(ranked[0]["joints"]) - 1], [0, 0]]
    out[0, spans[0][0] : spans[0][1] + 1] = ranked[0]["joints"]
    for body in ranked[1:]:
        start, end = body["start"], body["start"] + len(body["joints"]) - 1
        for actor in (0, 1):
            if min(spans[actor][1], end) - max(spans[actor][0], start) <= 0:
                out[actor, start : end + 1] = body["joints"]
                spans[actor] = [min(spans[actor][0], start), max(spans[actor][1], end)]
                break
    out = out[:, (out != 0).any(axis=(0, 2, 3))]
    return out if out[1].any() else out[:1]


@pytest.mark.parametrize("seed", range(16))
def test_the_choice_is_that_of_explicit_loops(seed):
    random = np.random.default_rng(seed)
    bodies = {}
    for number in range(random.integers(1, 6)):
        length = int(random.integers(1, 40))
        joints = moving_body(random, length, random.uniform(0.01, 0.3), wide=random.random() < 0.3)
        turned = random.random(length) < random.choice([0.0, 0.3, 0.6, 0.9])
        joints[turned] = joints[turned][..., [1, 0, 2]]
        bodies[str(72057594037944738 - number)] = (int(random.integers(0, 50 - length)), joints)
    text = of_bodies(bodies, 50)
    np.testing.assert_allclose(chosen(text).joints, usual_choice(text), rtol=1e-6)


def test_the_bigger_motion_comes_first():
    random = np.random.default_rng(0)
    calm, lively = moving_body(random, 20, 0.01), moving_body(random, 20, 0.3)
    read = chosen(of_bodies({"1": (0, calm), "2": (0, lively)}, 20))
    np.testing.assert_array_equal(read.joints, np.stack([lively, calm]).astype(np.float32))


def test_of_three_bodies_two_stay():
    random = np.random.default_rng(0)
    bodies = [moving_body(random, 20, stir) for stir in (0.1, 0.2, 0.3)]
    read = chosen(of_bodies({str(place): (0, body) for place, body in enumerate(bodies)}, 20))
    np.testing.assert_array_equal(read.joints, np.stack([bodies[2], bodies[1]]).astype(np.float32))


def test_a_person_whose_id_changes_stays_one_body():
    random = np.random.default_rng(0)
    one, other = moving_body(random, 15, 0.3), moving_body(random, 15, 0.1)
    read = chosen(of_bodies({"1": (0, one), "2": (15, other)}, 30))
    np.testing.assert_array_equal(read.joints, np.concatenate([one, other])[None].astype(np.float32))


def test_furniture_and_short_bodies_are_left_out():
    random = np.random.default_rng(0)
    person, chair, flash = moving_body(random, 20, 0.05), moving_body(random, 20, 0.5, wide=True), moving_body(random, 11, 0.5)
    read = chosen(of_bodies({"1": (0, chair), "2": (0, person), "3": (0, flash)}, 20))
    np.testing.assert_array_equal(read.joints, person[None].astype(np.float32))


@pytest.mark.parametrize(("frames", "wide"), [(5, False), (20, True)])
def test_the_last_body_stays(frames, wide):
    """Short bodies alone, wide bodies alone."""
    random = np.random.default_rng(0)
    bodies = {str(number): (0, moving_body(random, frames, 0.1, wide)) for number in range(3)}
    assert chosen(of_bodies(bodies, frames)).joints.any()


# -- files that cannot be used -------------------------------------------------------------------------------------------------------

GOOD = of_bodies({"7": (0, moving_body(np.random.default_rng(0), 3))}, 3)
"""3 frames of one body; the first joints stand in lines 5 to 29"""


def refused(text: str) -> str:
    with pytest.raises(DataError) as caught:
        parse(text.encode(), FILE)
    message = str(caught.value)
    assert message.startswith(f"{FILE}: ")
    assert "\n" not in message
    return message.removeprefix(f"{FILE}: ")


def line_changed(number: int, line: str) -> str:
    lines = GOOD.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


def test_no_body():
    assert refused("3\n0\n0\n0\n") == "holds no body in any frame; leave the recording out"
    assert "no number of frames" in refused("")


def test_nan_coordinates_name_the_line():
    assert refused(line_changed(7, "0.1 NaN 3 1 1 1 1 0 0 0 0 2")).startswith("line 7: x, y, z are not all finite numbers")
    assert refused(line_changed(33, "0.1 1 inf 1 1 1 1 0 0 0 0 2")).startswith("line 33: x, y, z are not all finite numbers")


def test_a_file_cut_short():
    lines = GOOD.splitlines(keepends=True)
    for kept in (1, 29, 30, 31, len(lines) - 1):
        assert "the file is cut short" in refused("".join(lines[:kept]))
    assert "ends in frame 3 of 3" in refused("".join(lines[:-1]))
    assert refused("".join(lines)[:-10]).startswith(f"line {len(lines)}: ")


def test_another_number_of_joints():
    assert refused(line_changed(4, "20")) == "line 4: 20 joints, expected 25 (ntu25)"


def test_lines_that_are_no_joints():
    assert refused(line_changed(9, "1 2 3")) == "line 9: 3 values, expected 12 numbers of a joint"
    assert refused(line_changed(9, "1 2 x 1 1 1 1 0 0 0 0 2")) == "line 9: a value is no number, expected 12 numbers of a joint"
    assert refused(line_changed(9, "1 " * 13)) == "line 9: more values, expected 12 numbers of a joint"
    assert refused(line_changed(9, "1 2 3 1 1 1 1 0 0 0 0 9")).startswith("line 9: the tracking state is not 0, 1 or 2")


def test_more_lines_than_frames():
    assert refused(GOOD + "1\n").startswith("line 86: goes on after its 3 frames")
    assert chosen(GOOD + "\n\n").joints.shape == (1, 3, 25, 3)


def test_a_body_twice_in_a_frame():
    body = moving_body(np.random.default_rng(0), 1)[0]
    assert refused(skeleton_file([[("7", body), ("7", body)]])) == "line 30: the body 7 a second time in one frame"


@pytest.mark.parametrize("claim", ["1000000000", "9" * 5000, "-1", "2.5", "", "\x1b[31m"])
def test_claims_do_not_fill_the_memory(claim):
    tracemalloc.start()
    for line in (1, 2, 4):
        message = refused(line_changed(line, claim))
        assert len(message) < 200
        assert message.isprintable()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_line_of_megabytes_does_not_fill_the_memory():
    long = line_changed(9, "1 " * 2**22)
    tracemalloc.start()
    assert refused(long) == "line 9: more values, expected 12 numbers of a joint"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(long)


def test_a_file_of_another_kind_and_size(tmp_path):
    assert "is no number of frames" in refused("\x89PNG\n\x1a\n" * 5)
    assert "over 4,000,000 lines" in refused("0\n" * 4_000_001)
    file = tmp_path / FILE
    with file.open("wb") as opened:
        opened.truncate(MOST_BYTES + 1)
    with pytest.raises(DataError, match=r"a \.skeleton file at most 134,217,728"):
        read_skeleton(file)
