"""Both small stages compute what is recorded in ``golden.json``; ``golden.py`` says how to compare and how to record anew."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from golden import RECORDED, TOLERANCE, check, differences

COMMAND = Path(__file__).with_name("golden.py")


@pytest.mark.slow
def test_both_stages_compute_what_is_recorded() -> None:
    """In a process of its own, whose libraries take one thread and the same products everywhere."""
    done = subprocess.run([sys.executable, COMMAND], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"make golden: {done.stdout[-3000:]}{done.stderr[-2000:]}"
    assert "all the same" in done.stdout


def test_a_number_of_another_last_bit_is_found() -> None:
    recorded = json.loads(RECORDED.read_text())
    now = copy.deepcopy(recorded)
    label, values = now["stage 2"][3]
    assert label.startswith("loss")
    value = float.fromhex(values[0])
    values[0] = (value * (1 + 2**-23)).hex()
    found, how = check(recorded, now)
    assert (len(found), how) == (1, "to the bit")
    assert found[0].startswith(f"stage 2, {label}: {value!r} recorded, ")
    assert not differences(recorded, now, TOLERANCE)
    values[0] = (value * 1.001).hex()
    assert len(differences(recorded, now, TOLERANCE)) == 1
    now["made with"]["torch"] = "another"
    assert "within 0.0001 of each loss (recorded with torch" in check(recorded, now)[1]
    del now["stage 1"][0]
    assert any("other steps were made" in line for line in differences(recorded, now, TOLERANCE))
