"""Tables of captions, and what is none."""

from pathlib import Path

import numpy as np
import pytest
from modules import data_of
from videos import block_clips

from vtlvlm.data.captions import MOST_LETTERS, read_captions
from vtlvlm.data.index import ClipIndex
from vtlvlm.errors import DataError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    data = data_of(block_clips(tmp_path_factory.mktemp("captions") / "videos", (1, 2)))
    data.prepare_data()
    data.setup()
    found: ClipIndex = data.index
    return found


def table(folder: Path, *rows: str, head: str = "clip,caption") -> Path:
    file = folder / "captions.csv"
    file.write_text("\n".join((head, *rows)) + "\n")
    return file


def test_captions_of_each_clip(index: ClipIndex, tmp_path: Path) -> None:
    names, paths = index.name, index.path
    rows = [
        f"{names[1]},  it   slides ",
        f'{names[0]},"it falls, fast"',
        f"{paths[1]},it falls down",
        f"{names[1]},it slides",
        "S099,other",
    ]
    found = read_captions(table(tmp_path, *rows), index, np.array([0, 1]))
    assert found.clip(0) == ["it falls, fast"]
    assert found.clip(1) == ["it slides", "it falls down", "it slides"]
    assert len(set(found.texts)) == len(found.texts) == 3
    drawn = found.drawn(np.array([1, 1, 1, 0]), np.array([0.0, 0.34, 0.999, 0.999]))
    assert [found.texts[place] for place in drawn] == ["it slides", "it falls down", "it slides", "it falls, fast"]
    other = read_captions(table(tmp_path, *rows[:2]), index, np.array([0, 1]))
    assert other.identity != found.identity


@pytest.mark.parametrize(
    ("rows", "head", "said"),
    [
        ([], "clip,caption", "holds no rows"),
        (["x,y"], "path,text", "no column caption and clip"),
        (["x,"], "clip,caption", "line 2 has no caption"),
        ([",y"], "clip,caption", "line 2 has no clip"),
        (["x"], "clip,caption", "line 2 has no caption"),
        ([f"x,{'y' * (MOST_LETTERS + 1)}"], "clip,caption", "a caption of 1,001 letters, at most 1,000"),
        (['x,"y'], "clip,caption", "not a CSV table"),
        (["x,y"], "clip,caption", "has no caption for 2 of 2 clips, the first being S"),
    ],
)
def test_what_is_no_table(rows: list[str], head: str, said: str, index: ClipIndex, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_captions(table(tmp_path, *rows, head=head), index, np.array([0, 1]))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
