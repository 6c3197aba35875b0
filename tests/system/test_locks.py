"""A lock belongs to one process, dies with it, and never writes through a link."""

import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import alone

from vtlvlm.errors import DataError
from vtlvlm.system.locks import FileLock, Taken

HOLD = """
import sys
from pathlib import Path
from vtlvlm.system.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_it_is_held_by_one_process_until_that_dies(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=alone(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Taken) as found:
            FileLock(path)
        assert found.value.owner.startswith(f"process {other.pid} on ")
        other.kill()
    lock = FileLock(path)
    with pytest.raises(Taken) as found:
        FileLock(tmp_path / "." / ".lock")
    assert found.value.owner == ""
    lock.release()
    FileLock(path).release()


def test_what_a_link_in_its_place_names_is_not_emptied(tmp_path: Path) -> None:
    (victim := tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(DataError, match="a link has the name of a lock"):
        FileLock(tmp_path / ".lock")
    assert victim.read_text() == "years of work"
