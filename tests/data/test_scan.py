"""What an index believes of files: passing failures, replaced and growing files, copies of sets."""

import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.scan import Seen, identity, look


def clip(path: Path, shade: int = 40, frames: int = 6) -> Path:
    return encode(path, moving_block(frames, 32, falls=True, shade=shade), codec="mpeg4" if path.suffix == ".avi" else "libx264")


def scan(root: Path, **options: object) -> ClipIndex:
    return ClipIndex.scan(root, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    clip(tmp_path / "set" / "walk" / "a.avi")
    clip(tmp_path / "set" / "run" / "b.mp4", 80)
    return tmp_path / "set"


def replace_by_another_of_its_size(file: Path, keep_time: bool) -> None:
    stamp, content = file.stat().st_mtime_ns, bytearray(file.read_bytes())
    content[content.index(b"ISFT") + 9] ^= 1  # the name of the writer, which no decoder looks at
    file.write_bytes(content)
    os.utime(file, ns=(stamp, stamp if keep_time else stamp + 1))


def test_a_video_replaced_by_another_of_its_size_is_noticed(root: Path) -> None:
    file, before = root / "walk" / "a.avi", scan(root)
    replace_by_another_of_its_size(file, keep_time=False)
    for options in ({"fast": True}, {}, {"fast": True}):
        assert scan(root, **options).identity[1] == identity(file) != before.identity[1]
    before = scan(root, verify=True)
    replace_by_another_of_its_size(file, keep_time=True)
    assert scan(root).identity[1] == before.identity[1]  # nothing shows it but the content
    assert scan(root, verify=True).identity[1] == identity(file) != before.identity[1]


def test_a_file_that_was_only_touched_is_not_looked_into_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(root)
    os.utime(root / "walk" / "a.avi")
    from vtlvlm.data import video

    monkeypatch.setattr(video, "probe", pytest.fail)
    again = scan(root)
    assert again.frames.tolist() == first.frames.tolist()
    assert again.checked.tolist() == [1, 1]
    assert scan(root).modified[1] == (root / "walk" / "a.avi").stat().st_mtime_ns


def test_a_half_downloaded_file_is_looked_into_when_it_is_whole(root: Path) -> None:
    file = root / "walk" / "a.avi"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))  # of its full size from the start
    half = scan(root)
    file.write_bytes(whole)
    assert scan(root).frames.tolist() == [6, 6]
    assert scan(root).identity[1] != half.identity[1]


def test_a_file_that_grows_while_it_is_read_is_looked_at_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtlvlm.data import video

    file, probe = root / "walk" / "a.avi", video.probe

    def slowly(path: Path) -> object:
        info = probe(path)
        if path == file:
            with path.open("ab") as end:
                end.write(b"more")
        return info

    with monkeypatch.context() as patch:
        patch.setattr(video, "probe", slowly)
        assert "changed while it was read" in scan(root).problem[1]
    assert scan(root, fast=True).checked.tolist() == [1, 0]
    assert scan(root).checked.tolist() == [1, 1]


def test_what_the_machine_lacks_for_a_moment_is_not_kept_against_a_file(root: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        while len(held) < 250:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        seen = look(root / "walk" / "a.avi", 1)
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen.level == 0
    assert look(root / "walk" / "a.avi", 1).level == 1


def test_too_little_memory_for_a_while(root: Path) -> None:
    """A file that cannot be decoded for want of memory is looked at again, and not damaged."""
    code = (
        "import resource, sys; from vtlvlm.cli import main; import av, numpy, pyarrow, tqdm, vtlvlm.data.scan, vtlvlm.data.video\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]) * 2**20,) * 2)\n"
        "sys.exit(main(['prepare', sys.argv[1], '--workers', '1', '--verify']))"
    )
    big = encode(root / "run" / "c.mp4", moving_block(4, 2048, falls=True, shade=9))
    row = 1
    for room in (16, 24, 40):
        command = [sys.executable, "-c", code, str(root), str(room)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr
        held = ClipIndex.read(root / ".vtlvlm" / "index.parquet")
        assert held.path[row] == f"run/{big.name}"
        assert held.damage[row] == "" or held.checked[row] == 0  # sound, or to be looked at again
    assert scan(root, verify=True).problem.tolist() == ["", "", ""]


def test_damaged_clips_are_looked_at_anew_by_prepare(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = scan(root)
    index.damage[0], index.checked[0] = "not a readable video (Cannot allocate memory)", 1  # as an earlier version kept it
    index.write(root / ".vtlvlm" / "index.parquet")
    assert scan(root).problem[0] != ""
    assert main(["prepare", str(root), "--verify"]) == 0
    assert "left out: none" in capsys.readouterr().out
    assert scan(root).problem.tolist() == ["", ""]


@pytest.mark.parametrize("seed", ["0", "1", "2", "3", "4", "5", "6"])
def test_a_set_copied_with_its_index_and_named_relatively(seed: str, root: Path, tmp_path: Path) -> None:
    scan(root)
    shutil.copytree(root, tmp_path / "copy")
    shutil.copytree(root, tmp_path / "old" / "copy", copy_function=shutil.copy)
    for place in ("copy", "old/copy"):
        code = "import sys; from vtlvlm.cli import main; sys.exit(main(['prepare', sys.argv[1], '--fast']))"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, place]
        if seed not in ("0", "3"):  # a process of its own takes a while: the others here, with the names turned round
            os.chdir(tmp_path)
            assert main(["prepare", *(["--output", f"{place}/.vtlvlm/index.parquet"] if seed in "15" else []), place, "--fast"]) == 0
            continue
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert scan(tmp_path / "copy", fast=True).frames.tolist() == [6, 6]
    assert scan(tmp_path / "old" / "copy", fast=True).frames.tolist() == [6, 6]  # with other times, and known by its content


def test_a_root_named_by_a_link_has_the_same_index(root: Path, tmp_path: Path) -> None:
    scan(root, store=tmp_path / "i.parquet")
    (tmp_path / "link").symlink_to(root)
    assert scan(tmp_path / "link", store=tmp_path / "i.parquet", fast=True).frames.tolist() == [6, 6]


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    assert look(tmp_path / "gone.mp4", 1) == Seen(look(tmp_path / "gone.mp4", 1).learnt, 0, -1, -1)


def test_a_pipe_by_a_videos_name_and_by_none_does_not_hold_anyone_up(root: Path) -> None:
    os.mkfifo(root / "walk" / "pipe.mp4")
    os.mkfifo(root / "walk" / "pipe.xyz")
    result: list[ClipIndex] = []
    thread = threading.Thread(target=lambda: result.append(scan(root)), daemon=True)
    thread.start()
    thread.join(30)
    assert result[0].problem.tolist() == ["", "", "not a regular file"]
