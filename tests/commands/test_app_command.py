"""`vtlvlm app` from its start to Ctrl-C, and what it refuses before a model is loaded."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from pipeline import Pipeline, alone

from vtlvlm.cli import main
from vtlvlm.web.serving import bound


def test_from_its_start_to_ctrl_c(chain: Pipeline, tmp_path: Path) -> None:
    clip = sorted(chain.root.glob("*.avi"))[0]
    command = [sys.executable, "-m", "vtlvlm", "app", str(chain.bundle), "--port", "0", "--device", "cpu"]
    environment = alone(TMPDIR=str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = line.split()[1]
            assert address.startswith("http://127.0.0.1:")
            request = urllib.request.Request(f"{address}api/classify", data=clip.read_bytes())
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
            assert len(found["actions"]) == 2
            assert list(tmp_path.glob("vtlvlm-web-*"))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert err.splitlines()[-1] == "vtlvlm: ended; all clips are removed"
    assert not list(tmp_path.glob("vtlvlm-web-*"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["app", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"format": 4, "kind": "skeletons", "layout": "ntu25"}))
    assert "add --token" in refused(capsys, bundle, "--host", "0.0.0.0")
    assert "no such model" in refused(capsys, tmp_path / "none")
    assert "reads recordings of bodies" in refused(capsys, bundle, "--port", 0)
    assert "megabytes=0" in refused(capsys, bundle, "--max-megabytes", 0)
    assert "clip=-1" in refused(capsys, bundle, "--clip", -1)
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        assert "used by another program" in refused(capsys, bundle, "--port", taken.getsockname()[1])
