"""Places are what they are, however they are spelt."""

import os
from pathlib import Path

import pytest

from vtlvlm.errors import UsageError
from vtlvlm.system.places import below, require_apart, require_json_place, same, within


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "v" / "deep").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    (tmp_path / "v" / "a.mp4").write_text("a")
    (tmp_path / "link").symlink_to("v")
    os.link(tmp_path / "v" / "a.mp4", tmp_path / "hard.mp4")
    return tmp_path


@pytest.mark.parametrize("spelt", ["v", "./v", "x/../v", "link", "v/", "v/deep/.."])
def test_one_folder_in_many_spellings(tree: Path, spelt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert same(spelt, tree / "v")
    assert within(f"{spelt}/deep/new", "v")
    for output, source in ((spelt, "v"), (f"{spelt}/new", "v"), ("v", f"{spelt}/deep")):
        with pytest.raises(UsageError, match="name a"):
            require_apart(output, [None, source], "the copies")


def test_hard_links_are_the_same_file(tree: Path) -> None:
    with pytest.raises(UsageError, match="over"):
        require_apart(tree / "hard.mp4", [tree / "v" / "a.mp4"], "the copy")


def test_neighbours_with_a_common_beginning_are_apart(tree: Path) -> None:
    require_apart(tree / "v2", [tree / "v", tree / "x"], "the copies")
    assert not within(tree / "v2", tree / "v")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", ".", "out/x"])
def test_a_path_from_data_stays_inside(tree: Path, path: str) -> None:
    (tree / "v" / "out").symlink_to("..")
    with pytest.raises(UsageError, match="outside"):
        below(tree / "v", path)
    assert below(tree / "v", "s1/./b.mp4") == tree / "v" / "s1" / "b.mp4"


@pytest.mark.parametrize(
    ("name", "content"), [("v", None), ("last.ckpt", "PK"), ("half.json", "{"), ("list.json", "[1]"), ("a.yaml", "{}")]
)
def test_json_replaces_json_alone(tree: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tree / name).write_text(content)
    with pytest.raises(UsageError, match="name a"):
        require_json_place(tree / name)
    (tree / "old.json").write_text('{"rows": []}')
    require_json_place(tree / "old.json")
    require_json_place(tree / "new.json")
