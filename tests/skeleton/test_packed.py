"""Packed recordings: NW-UCLA's file, files with known numbers, and hostile ones."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vtlvlm.errors import DataError
from vtlvlm.skeleton.packed import open_recordings


def arrays(**other: np.ndarray) -> dict[str, np.ndarray]:
    """Two recordings of three and two frames of 20 joints."""
    return {
        "joints": np.arange(5 * 20 * 3, dtype=np.float32).reshape(5, 20, 3),
        "frames": np.array([3, 2]),
        "name": np.array(["x", "y"]),
    } | other


def saved(path: Path, **columns: np.ndarray) -> Path:
    np.savez_compressed(path, **columns)
    return path


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_recordings(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_nw_ucla(test_data):
    file = test_data / "skeletons/nw_ucla.npz"
    if not file.is_file():
        pytest.skip("VTLVLM_TEST_DATA holds no skeletons/nw_ucla.npz")
    found = open_recordings(file)
    assert len(found) == 1484
    assert found.layout.name == "kinect20"
    assert found.classes is not None
    assert (found.classes[1], found.classes[10]) == ("pick up with one hand", "carry")
    assert {path[:4] for path in found.paths} == {"S001"}
    with np.load(file) as held:
        row = held["name"].tolist().index("a12_s09_e03_v02")
        begin = int(held["frames"][:row].sum())
        assert found.paths[row] == "S001C002P009R004A010"
        np.testing.assert_array_equal(found.values(row)[0], held["joints"][begin : begin + held["frames"][row]])
    assert found.frames.sum() == 58534
    assert (found.bodies == 1).all()


def test_each_recording_has_its_frames(tmp_path):
    columns = arrays()
    found = open_recordings(saved(tmp_path / "two.npz", **columns))
    assert found.paths == ("x", "y")
    assert found.classes is None
    np.testing.assert_array_equal(found.values(0), columns["joints"][None, :3])
    np.testing.assert_array_equal(found.values(1), columns["joints"][None, 3:])
    one = found.skeletons(1)
    np.testing.assert_array_equal(one.joints, columns["joints"][None, 3:])
    assert np.isnan(one.pixels).all()
    assert one.pixels.shape == (1, 2, 20, 2)
    assert (one.tracked == 2).all()


def test_two_bodies_follow_each_other(tmp_path):
    columns = arrays(frames=np.array([2, 1]), bodies=np.array([2, 1]))
    found = open_recordings(saved(tmp_path / "two.npz", **columns))
    np.testing.assert_array_equal(found.values(0), np.stack([columns["joints"][:2], columns["joints"][2:4]]))
    np.testing.assert_array_equal(found.values(1), columns["joints"][None, 4:])


def test_columns_make_ntu_like_names(tmp_path):
    numbers = {"view": np.array([1, 3]), "subject": np.array([10, 2]), "repetition": np.array([0, 4]), "label": np.array([9, 0])}
    found = open_recordings(saved(tmp_path / "two.npz", **arrays(**numbers)))
    assert found.paths == ("S001C001P010R001A010", "S001C003P002R005A001")


WRONG = {
    "lacks the array joints": {"joints": None},
    "lacks the array frames": {"frames": None},
    "lacks the array name": {"name": None},
    "expected joints (body-frames, V, 3)": {"joints": np.zeros((5, 20, 2), np.float32)},
    "13 joints are of no known layout; known are 25 (ntu25), 20 (kinect20), 17 (coco17)": {"joints": np.zeros((5, 13, 3), np.float32)},
    "joints has 5 body-frames, frames (and bodies) claim 4": {"frames": np.array([2, 2])},
    "frames must be 2 whole numbers from 1 to 5": {"frames": np.array([10**9, 2])},
    "frames must be 2 whole numbers": {"frames": np.array([2.5, 2.5])},
    "bodies must be 2 whole numbers from 1 to 2": {"bodies": np.array([3, 1])},
    "name must be 2 texts": {"name": np.array([1, 2])},
    "holds x twice": {"name": np.array(["x", "x"])},
    "y has coordinates that are not finite": {"joints": np.where(np.arange(300).reshape(5, 20, 3) == 299, np.nan, 1.0)},
    "view must be 2 whole numbers from 1 to 999": {key: np.zeros(2, np.int64) for key in ("view", "subject", "repetition", "label")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_contents(tmp_path, message):
    columns = {name: column for name, column in arrays(**WRONG[message]).items() if column is not None}
    assert refused(saved(tmp_path / "wrong.npz", **columns)).startswith(message)


def test_no_file(tmp_path):
    assert "no such file or folder of recordings" in refused(tmp_path / "none.npz")


def test_damaged_and_hostile_files_do_not_fill_the_memory(tmp_path):
    good = saved(tmp_path / "good.npz", **arrays()).read_bytes()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 20, 3)})
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([{}, {}], dtype=object), allow_pickle=True)
    claims, pickles, bomb = (tmp_path / f"{name}.npz" for name in ("claims", "pickles", "bomb"))
    for file, content in ((claims, header.getvalue()), (pickles, objects.getvalue()), (bomb, bytes(2**24))):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("joints.npy", content)
    (tmp_path / "half.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    tracemalloc.start()
    for file in (claims, pickles, bomb, tmp_path / "half.npz", tmp_path / "empty.npz"):
        assert refused(file) == "not an .npz file of recordings, or damaged; copy it again"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
