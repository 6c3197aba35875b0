"""Rendered sets on disk: bytes, formats, resuming, refusals."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from vtlvlm.commands import synth as command
from vtlvlm.data.ntu import ACTIONS, ClipName
from vtlvlm.errors import DataError, UsageError
from vtlvlm.synth.dataset import ClipSpec, generate
from vtlvlm.synth.scene import Camera, Setup

SMALL = {"subjects": 1, "actions": [8, 58], "cameras": [1, 3], "progress": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("synth") / "set"
    return root, generate(root, workers=1, **SMALL)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_tree_and_manifest(small):
    root, manifest = small
    names = [clip["name"] for clip in manifest["clips"]]
    files = set(contents(root))
    assert files == {"classes.txt", "synth.json"} | {f"nturgb+d_rgb/{n}_rgb.avi" for n in names} | {
        f"nturgb+d_skeletons/{n}.skeleton" for n in names
    }
    assert json.loads((root / "synth.json").read_text()) == json.loads(json.dumps(manifest))
    assert (root / "classes.txt").read_text() == f"A008 {ACTIONS[7]}\nA058 {ACTIONS[57]}\n"
    parsed = [ClipName.parse(root / "nturgb+d_rgb" / f"{n}_rgb.avi") for n in names]
    assert {(c.camera, c.subject, c.action) for c in parsed} == {(c, 1, a) for c in (1, 3) for a in (8, 58)}
    assert [str(c) for c in parsed] == names


def test_videos_decode_to_what_the_manifest_says(small):
    root, manifest = small
    for clip in manifest["clips"]:
        with av.open(str(root / "nturgb+d_rgb" / f"{clip['name']}_rgb.avi")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.average_rate == 30
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == clip["frames"]
        assert frames[0].shape == (manifest["height"], manifest["width"], 3)
        still = np.abs(frames[0].astype(int) - frames[1]).mean()
        middle = clip["motion_start"] + clip["motion_frames"] // 2
        assert np.abs(frames[0].astype(int) - frames[middle]).mean() > still  # something happens


def read_skeleton(path: Path) -> list[list[np.ndarray]]:
    """NTU's format, read strictly: every line has the number of fields it must have and nothing is left over."""
    lines = iter(path.read_text().splitlines())
    frames = []
    for _ in range(int(next(lines))):
        bodies = []
        for _ in range(int(next(lines))):
            assert len(next(lines).split()) == 10
            assert next(lines) == "25"
            joints = np.array([[float(v) for v in next(lines).split()] for _ in range(25)])
            assert joints.shape == (25, 12)
            bodies.append(joints)
        frames.append(bodies)
    assert next(lines, None) is None
    return frames


def test_skeletons_are_in_ntus_format_and_agree_with_the_camera(small):
    root, manifest = small
    for clip in manifest["clips"]:
        frames = read_skeleton(root / "nturgb+d_skeletons" / f"{clip['name']}.skeleton")
        assert len(frames) == clip["frames"]
        assert {len(bodies) for bodies in frames} == {clip["bodies"]}
        name = ClipName.parse(clip["name"])
        spec = ClipSpec(0, name.setup, name.camera, name.subject, name.replication, name.action)
        camera, joints = Camera.of(Setup.of(0, name.setup), name.camera), spec.performance().joints
        rows = np.array(frames).transpose(1, 0, 2, 3)
        np.testing.assert_allclose(rows[..., :3], camera.see(joints), atol=1e-5)
        np.testing.assert_allclose(rows[..., 5:7], camera.project(joints)[..., :2], atol=1e-3)
        assert (rows[..., 2] > 1.0).all()
        np.testing.assert_allclose(np.linalg.norm(rows[..., 7:11], axis=-1), 1.0, atol=1e-5)
        assert (rows[..., 11] == 2).all()


@pytest.mark.slow
def test_number_of_workers_changes_no_byte_and_the_seed_does(small, tmp_path):
    root, _ = small
    generate(tmp_path / "other", workers=2, **SMALL)
    assert contents(tmp_path / "other") == contents(root)
    generate(tmp_path / "seed", seed=1, subjects=1, actions=[8], cameras=[1], workers=1, progress=False)
    mine, theirs = (next((r / "nturgb+d_rgb").glob("*C001*A008*")).read_bytes() for r in (root, tmp_path / "seed"))
    assert mine != theirs


def test_resumes_after_a_file_is_lost(tmp_path):
    settings = {"subjects": 1, "actions": [27], "cameras": [1, 2], "workers": 1, "progress": False}
    root = tmp_path / "set"
    generate(root, **settings)
    before = contents(root)
    lost, kept = sorted((root / "nturgb+d_rgb").iterdir())
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    generate(root, **settings)
    assert contents(root) == before
    assert kept.stat().st_mtime_ns == stamp  # not made again


def test_refuses_other_settings_and_foreign_files(small, tmp_path):
    root, _ = small
    before = contents(root)
    with pytest.raises(UsageError, match=r"made with seed 0 and not 3; choose another folder"):
        generate(root, seed=3, workers=1, **SMALL)
    assert contents(root) == before
    foreign = tmp_path / "nturgb+d_rgb"
    foreign.mkdir()
    (foreign / "S001C001P001R001A001_rgb.avi").write_bytes(b"mine")
    with pytest.raises(DataError, match="holds files"):
        generate(tmp_path, workers=1, **SMALL)
    assert set(contents(tmp_path)) == {"nturgb+d_rgb/S001C001P001R001A001_rgb.avi"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"actions": [1]}, "action 1: cannot be rendered; choose from 6, 8"),
        ({"cameras": [4]}, "camera 4"),
        ({"cameras": []}, "no camera chosen"),
        ({"subjects": 0}, "subjects 0: must be between 1 and 100"),
        ({"seed": -1}, "seed -1"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_settings_out_of_range_leave_nothing_behind(tmp_path, setting, message):
    with pytest.raises(UsageError, match=message):
        generate(tmp_path / "set", progress=False, **setting)
    assert not (tmp_path / "set").exists()


def test_command(tmp_path, capsys):
    parser = argparse.ArgumentParser(description=command.__doc__)
    command.add_arguments(parser)
    args = parser.parse_args([str(tmp_path / "set"), "--subjects", "1", "--actions", "8", "--cameras", "1", "--workers", "1"])
    assert command.run(args) == 0
    assert "1 clips of 1 actions" in capsys.readouterr().out


@pytest.mark.parametrize(("modules", "heavy"), [("captions, dataset, untrimmed", {"torch", "scipy"}), ("recorded", {"torch"})])
def test_rendering_needs_no_torch(modules: str, heavy: set[str]) -> None:
    """Each process that renders imports what it needs and no more."""
    code = f"import sys; from vtlvlm.synth import {modules}; print({heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
