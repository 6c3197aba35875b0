"""Whole files: a block that fails, two writers, what a killed process left."""

import subprocess
import sys
from pathlib import Path

import pytest

from vtlvlm.system.files import appearing, replacing, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_where_writing_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="no room"):  # noqa: PT012, SIM117
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError(28, "no room")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_process_have_temporaries_of_their_own(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1"  # the outer block ends last


def test_a_link_keeps_its_name_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("far/real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert '"a": 1' in (tmp_path / "far" / "real.json").read_text()


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from vtlvlm.system.files import appearing, replacing\n"
        "with replacing(sys.argv[1] + '/a') as one, appearing(sys.argv[1] + '/b') as two:\n"
        "    one.write_text('half'); (two / 'x').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert len(names(tmp_path)) == 2
    write_text(tmp_path / "a", "whole")
    with appearing(tmp_path / "b") as folder:
        (folder / "x").write_text("whole")
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):  # noqa: PT012, SIM117
        with appearing(tmp_path / "deep" / "b") as folder:
            (folder / "x").write_text("half")
            raise OSError(28, "no room")
    assert names(tmp_path / "deep") == []
    with appearing(tmp_path / "deep" / "b") as folder:
        (folder / "x").write_text("whole")
    assert (tmp_path / "deep" / "b" / "x").read_text() == "whole"
    with pytest.raises(OSError, match="not empty"), appearing(tmp_path / "deep" / "b") as folder:  # filled meanwhile
        (folder / "x").write_text("other")
    assert (tmp_path / "deep" / "b" / "x").read_text() == "whole"
