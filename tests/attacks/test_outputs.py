"""Outputs of ``prepare`` never leave their folder and never take a source's place, whatever paths, links and tables say."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data.index import ClipIndex


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.chdir(tmp_path)


def clip(path: Path, shade: int = 40) -> Path:
    return encode(path, moving_block(6, 32, falls=True, shade=shade), codec="mpeg4" if path.suffix == ".avi" else "libx264")


def contents(*folders: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below folders, outside the indexes, as bytes and time of change."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and ".vtlvlm" not in path.parts]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number, name in enumerate(("walk/a.mp4", "run/b.avi", "run/c.mov")):
        clip(tmp_path / "videos" / name, 30 * number)
    return tmp_path / "videos"


def table(path: Path, rows: list[str]) -> Path:
    path.write_text("path,label\n" + "".join(f"{row},{'walk' if number % 2 else 'run'}\n" for number, row in enumerate(rows)))
    return path


@pytest.mark.parametrize(
    ("spelt", "inside"),
    [
        (lambda root, file: str(root / file), "{}"),
        (lambda root, file: f"../videos/{file}", "{}"),
        (lambda root, file: f"./walk/../{file}", "{}"),
        (lambda root, file: str(root.parent / "far" / "x" / ".." / file), "elsewhere{far}/{}"),
        (lambda root, file: f"../far/{file}", "elsewhere{far}/{}"),
        (lambda root, file: f"../../../../../../../../../..{root.parent}/far/{file}", "elsewhere{far}/{}"),
    ],
)
def test_paths_that_lead_out_of_the_root(videos: Path, tmp_path: Path, spelt: Callable[[Path, str], str], inside: str) -> None:
    for number, name in enumerate(("walk/a.mp4", "run/b.avi", "run/c.mov")):
        clip(tmp_path / "far" / name, 30 * number)
    (tmp_path / "far" / "x").mkdir()
    names = ["walk/a.mp4", "run/b.avi", "run/c.mov"]
    listed = table(tmp_path / "clips.csv", [spelt(videos, name) for name in names])
    before = contents(videos, tmp_path / "far")
    command = ["prepare", str(videos), "--csv", str(listed), "--transcode", str(tmp_path / "copies")]
    assert main(command) == 0
    assert contents(videos, tmp_path / "far") == before
    with (tmp_path / "copies" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = [inside.format(name.rpartition(".")[0] + ".mp4", far=tmp_path / "far") for name in names]
    assert [row["path"] for row in rows] == wanted
    assert [row["label"] for row in rows] == ["run", "walk", "run"]
    made = tmp_path / "copies" / wanted[1]
    stamp = made.stat().st_mtime_ns
    assert main(["prepare", str(tmp_path / "copies"), "--csv", str(tmp_path / "copies" / "clips.csv")]) == 0
    assert main(command) == 0  # goes on where it was: nothing is left to do
    assert made.stat().st_mtime_ns == stamp


def test_every_spelling_of_the_root_as_the_folder_of_copies(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(videos)
    (tmp_path / "x").mkdir()
    (videos / "deep").mkdir()
    spellings = [
        "link",
        "x/../videos",
        "videos/",
        "videos/.",
        f"{videos}",
        "videos/deep/..",
        "link/walk",
        "videos/new",
        "link/new",
        ".",
        "..",
    ]
    before = contents(videos)
    for root in ("videos", "link", f"{videos}"):
        for spelling in spellings:
            assert main(["prepare", root, "--transcode", spelling]) in (1, 2), (root, spelling)
            assert capsys.readouterr().err.count("\n") == 1
    assert contents(videos) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "user-cache") == ["link", "videos", "x"]


def test_links_inside_the_folder_of_copies(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies, other = tmp_path / "copies", tmp_path / "other"
    other.mkdir()
    (other / "thesis.mp4").write_text("years of work")
    before = contents(videos, other)
    for name, target in (
        ("walk", videos / "walk"),
        ("run", other),
        ("walk/a.mp4", videos / "walk" / "a.mp4"),
        ("walk/a.mp4", other / "thesis.mp4"),
        (".lock-r00000", other / "thesis.mp4"),
    ):
        link = copies / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        assert main(["prepare", str(videos), "--transcode", str(copies)]) in (1, 2)
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert name.partition("/")[0] in message
        link.unlink()
        assert contents(videos, other) == before
    for name in ("walk/a.mp4", "run/b.mp4", ".lock-r00000"):
        hard = copies / name
        hard.parent.mkdir(parents=True, exist_ok=True)
        os.link(videos / "walk" / "a.mp4", hard)
        assert main(["prepare", str(videos), "--transcode", str(copies)]) in (1, 2)
        assert "copies" in capsys.readouterr().err
        hard.unlink()
        assert contents(videos, other) == before
    assert main(["prepare", str(videos), "--transcode", str(copies)]) == 0
    assert contents(videos, other) == before


def test_a_folder_of_other_files_is_not_overwritten(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = clip(tmp_path / "mine" / "walk" / "a.mp4", 90)
    kept = other.read_bytes()
    assert main(["prepare", str(videos), "--transcode", str(tmp_path / "mine")]) == 2
    assert f"{other}: exists and is not a copy" in capsys.readouterr().err
    assert other.read_bytes() == kept
    listed = table(tmp_path / "t.csv", ["walk/a.mp4", "run/b.avi"])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "clips.csv").write_text("path,label\nmine.mp4,x\n")
    assert main(["prepare", str(videos), "--csv", str(listed), "--transcode", str(tmp_path / "c")]) == 2
    assert "clips.csv: exists and belongs to no set of copies" in capsys.readouterr().err
    assert (tmp_path / "c" / "clips.csv").read_text() == "path,label\nmine.mp4,x\n"


def test_tables_that_are_links_to_the_users_own(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = table(tmp_path / "t.csv", ["walk/a.mp4", "run/b.avi"])
    kept = listed.read_bytes()
    (tmp_path / "c").mkdir()
    for link in (lambda: os.link(listed, tmp_path / "c" / "clips.csv"), lambda: (tmp_path / "c" / "clips.csv").symlink_to(listed)):
        link()
        main(["prepare", str(videos), "--csv", str(listed), "--transcode", str(tmp_path / "c")])
        assert listed.read_bytes() == kept
        (tmp_path / "c" / "clips.csv").unlink()
    inner = table(tmp_path / "c" / "clips.csv", ["walk/a.mp4", "run/b.avi"])
    assert main(["prepare", str(videos), "--csv", str(inner), "--transcode", str(tmp_path / "c")]) == 2
    assert "the source of the folder of copies" in capsys.readouterr().err
    assert inner.read_bytes() == kept


def test_videos_outside_the_root_but_in_the_folder_of_copies(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = clip(tmp_path / "copies" / "elsewhere" / "z.mp4", 80)
    listed = table(tmp_path / "t.csv", ["walk/a.mp4", str(inside)])
    before = contents(videos, tmp_path / "copies")
    assert main(["prepare", str(videos), "--csv", str(listed), "--transcode", str(tmp_path / "copies")]) == 2
    assert f"holds the source video {inside}; name another folder" in capsys.readouterr().err
    (videos / "walk" / "z.mp4").symlink_to(inside)
    assert main(["prepare", str(videos), "--transcode", str(tmp_path / "copies")]) == 2
    assert contents(videos, tmp_path / "copies") == {**before, str(videos / "walk" / "z.mp4"): before[str(inside)]}


def test_names_that_differ_in_capitals_only_have_copies_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate(("walk/a.mp4", "walk/A.mp4", "walk/A.avi")):
        clip(tmp_path / "v" / name, 50 * number)
    listed = table(tmp_path / "t.csv", ["walk/a.mp4", "walk/A.mp4", "walk/A.avi"])
    assert main(["prepare", str(tmp_path / "v"), "--csv", str(listed), "--transcode", str(tmp_path / "c")]) == 0
    with (tmp_path / "c" / "clips.csv").open() as file:
        names = [row["path"] for row in csv.DictReader(file)]
    assert names == ["walk/a.mp4", "walk/A~2.mp4", "walk/A~3.mp4"]
    index = ClipIndex.scan(tmp_path / "c", csv=tmp_path / "c" / "clips.csv", progress=False)
    assert len(index.usable) == 3


@pytest.mark.parametrize(
    "name", ["videos/walk/a.mp4", "videos/clips.parquet", "videos/classes.parquet", "t.csv", "videos", "t.txt", "plain.parquet"]
)
def test_an_index_file_that_names_something_else(name: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "t.csv", ["walk/a.mp4", "run/b.avi"])
    (videos / "clips.txt").write_text("what I know of these clips\n")  # where the report of clips.parquet would go
    (videos / "classes.txt").write_text("walk\nrun\n")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"mine": [1, 2]}), tmp_path / "plain.parquet")
    before = contents(videos, tmp_path)
    assert main(["prepare", str(videos), "--csv", str(tmp_path / "t.csv"), "--output", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(videos, tmp_path) == before


def test_an_index_of_ones_own_is_written_again(videos: Path, tmp_path: Path) -> None:
    for name in ("i.parquet", "i", "i.parquet"):
        assert main(["prepare", str(videos), "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "i.txt").read_text().startswith(str(videos))


@pytest.mark.parametrize("link", [".vtlvlm", ".vtlvlm/index.parquet", ".vtlvlm/index.txt"])
def test_a_set_that_brings_links_in_the_place_of_its_index(link: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    for name in ("index.parquet", "index.txt", "profile"):
        (tmp_path / "home" / name).write_text("mine")
    (videos / link).parent.mkdir(exist_ok=True)
    (videos / link).symlink_to(tmp_path / "home" if link == ".vtlvlm" else tmp_path / "home" / "profile")
    before = contents(tmp_path / "home")
    assert main(["prepare", str(videos)]) == 0
    assert contents(tmp_path / "home") == before
    assert len(list((tmp_path / "user-cache" / "vtlvlm").glob("index-*.parquet"))) == 1


def test_rendered_clips_replace_nobodys_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["synth", str(tmp_path / "s"), "--subjects", "1", "--actions", "8", "--cameras", "1", "--workers", "1"]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "classes.txt").write_text("A001 my own\n")
    assert main(command) == 1
    assert (tmp_path / "s" / "classes.txt").read_text() == "A001 my own\n"
    (tmp_path / "s" / "classes.txt").unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "s" / "nturgb+d_rgb").symlink_to(tmp_path / "mine")
    assert main(command) == 1
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "s" / "nturgb+d_rgb").unlink()
    (tmp_path / "mine" / "notes").write_text("mine")
    (tmp_path / "s" / ".classes.txt.part").symlink_to(tmp_path / "mine" / "notes")
    assert main(command) == 0
    assert (tmp_path / "mine" / "notes").read_text() == "mine"


def test_every_pair_of_paths_of_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever two options name, one thing or things inside each other, by any spelling: what was there stays as it was."""
    root = tmp_path / "videos"
    for number, name in enumerate(("walk/a.mp4", "run/b.avi")):
        clip(root / name, 30 * number)
    table(tmp_path / "t.csv", ["walk/a.mp4", "run/b.avi"])
    (tmp_path / "classes.txt").write_text("walk\nrun\n")
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    before = contents(tmp_path)
    places = ["videos", "videos/walk/../../videos", "link", "videos/walk", "videos/walk/a.mp4", "link/run/b.avi", "videos/new", "t.csv"]
    places += ["classes.txt", ".", "other", "other/notes", "new.parquet", "link/walk/new.parquet"]
    tables = ([], ["--csv", "t.csv"], ["--classes", "classes.txt"])
    done = 0
    for number, output in enumerate(places):
        for copies in places:
            command = ["prepare", "videos", "--side", "32", *tables[(number + done) % 3], "--output", output, "--transcode", copies]
            done += 1
            code = main(command)
            assert code in (0, 1, 2), command
            assert "Traceback" not in capsys.readouterr().err, command
            after = contents(tmp_path)
            assert {name: after.get(name) for name in before} == before, command
            if code == 0:
                assert copies in ("other", "new.parquet"), command
    for option in ("--csv", "--classes"):
        for place in places:
            assert main(["prepare", "videos", "--fast", option, place]) in (0, 1, 2)
    assert {name: contents(tmp_path).get(name) for name in before} == before
