"""``kill -9`` at random moments, then the same command again: nothing is lost, doubled, damaged or misleading.

``VTLVLM_KILLS=50 pytest -m slow tests/attacks/test_kill_anywhere.py`` kills each command fifty times.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import Pipeline, alone
from safetensors.numpy import load_file
from videos import block_clips

from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.index import COLUMNS, ClipIndex
from vtlvlm.stages.stage import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
KILLS = int(os.environ.get("VTLVLM_KILLS", "5"))

# One process imports everything once, and forks for each command.
SERVER = """
import json, os, sys
import lightning, torch, transformers
import vtlvlm.commands.trainer, vtlvlm.recognizers.recognizer, vtlvlm.commands.prepare, vtlvlm.data.scan
from vtlvlm.cli import main
torch.set_num_threads(1)
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1), os.dup2(handle, 2)
        code = 99
        try:
            code = main(arguments)
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Victims:
    """Runs commands, and kills them."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "said.txt"
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=alone(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, arguments: list[object], after: float | None = None) -> int:
        """The exit code; -9 where the command was killed so many seconds after its start."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps([[str(part) for part in arguments], str(self.log)]) + "\n")
        child = int(self.server.stdout.readline())
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)  # a child that has ended waits for the server to ask for its code, or is gone
        return int(self.server.stdout.readline())

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    made = Victims(tmp_path_factory.mktemp("victims"))
    assert made(["--version"]) == 0  # all is imported from here on
    yield made
    made.server.kill()


def survive(
    victims: Victims, arguments: Callable[[], list[object]], output: Path, same: Callable[[], None], check: Callable[[], None]
) -> None:
    """Kill a command until it was killed ``KILLS`` times; whenever it gets to its end, compare what it made, and begin anew.

    Args:
        victims: Runs and kills.
        arguments: The command line, which may depend on what is there.
        output: What it makes; removed before it begins anew.
        same: Compares what an uninterrupted command would have made.
        check: Looks at what a killed one has left.
    """
    began = time.monotonic()
    assert victims(arguments()) == 0, victims.said()
    whole = time.monotonic() - began
    same()
    draw, killed, finished = random.Random(0), 0, 0
    remove(output)
    while killed < KILLS:
        try:
            code = victims(arguments(), after=draw.uniform(0, whole))
        except ProcessLookupError:
            code = int(victims.server.stdout.readline())  # type: ignore[union-attr]
        assert code in (0, -9), victims.said()
        assert "Traceback" not in victims.said()
        if code == 0:
            same()
            finished += 1
            remove(output)
        else:
            killed += 1
            check()
    assert victims(arguments()) == 0, victims.said()
    same()
    print(f"{killed} killed, {finished} finished between them, one whole takes {whole:.1f} s")
    left = [path for path in output.parent.rglob("*") if path.name.endswith(".tmp")]
    assert not left


def remove(output: Path) -> None:
    shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)


def nothing() -> None:
    return


def test_prepare(victims: Victims, tmp_path: Path) -> None:
    block_clips(tmp_path / "videos", people=tuple(range(1, 61)))
    store = tmp_path / "index" / "index.parquet"
    whole = ClipIndex.scan(tmp_path / "videos", store=tmp_path / "whole.parquet", progress=False, verify=True)

    def same() -> None:
        found = ClipIndex.read(store)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), name)

    survive(victims, lambda: ["prepare", tmp_path / "videos", "--verify", "--output", store], store.parent, same, nothing)


def test_extract(victims: Victims, chain: Pipeline, tmp_path: Path) -> None:
    whole, output = FeatureCache.open(chain.features), tmp_path / "out" / "features"

    def same() -> None:
        found = FeatureCache.open(output)
        assert sorted(zip(found.names, found.views, strict=True)) == sorted(zip(whole.names, whole.views, strict=True))
        for view in np.unique(whole.views):
            names = np.unique(whole.names)
            one, two = found.rows(names, view), whole.rows(names, view)
            torch.testing.assert_close(found.features(one[one >= 0]), whole.features(two[two >= 0]), rtol=0, atol=2e-3)
            assert torch.equal(found.times(one[one >= 0]), whole.times(two[two >= 0]))

    survive(victims, lambda: ["extract", "--config", chain.stage1, "--output", output, "--verify"], output, same, nothing)


def test_tokenize(victims: Victims, chain: Pipeline, tmp_path: Path) -> None:
    whole, output = EventCache.open(chain.events), tmp_path / "out" / "events"

    def same() -> None:
        found = EventCache.open(output)
        assert sorted(zip(found.names, found.views, strict=True)) == sorted(zip(whole.names, whole.views, strict=True))
        names = np.unique(whole.names)
        assert torch.equal(found.ids(found.rows(names)), whole.ids(whole.rows(names)))

    command = ["tokenize", *chain.on_features, "--ckpt_path", chain.best1, "--output", output, "--verify"]
    survive(victims, lambda: command, output, same, nothing)


def test_fit(victims: Victims, chain: Pipeline, tmp_path: Path) -> None:
    output, last = tmp_path / "out" / "run", tmp_path / "out" / "run" / "checkpoints" / "last.ckpt"
    command = ["fit", *chain.on_features, "--trainer.max_epochs", "6", "--trainer.default_root_dir"]
    assert victims([*command, tmp_path / "whole"]) == 0, victims.said()
    weights = load_checkpoint(tmp_path / "whole" / "checkpoints" / "last.ckpt")["state_dict"]

    def arguments() -> list[object]:
        return [*command, output, *(["--ckpt_path", "last"] if last.exists() else [])]

    def same() -> None:
        found = load_checkpoint(last)["state_dict"]
        assert found.keys() == weights.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
        fit = json.loads((output / "fit.json").read_text())
        assert fit["steps"] == 6
        assert fit["sessions"][-1]["finished"]

    def check() -> None:
        for checkpoint in (output / "checkpoints").glob("*.ckpt"):
            load_checkpoint(checkpoint)  # whole, or not there

    survive(victims, arguments, output, same, check)


def test_export(victims: Victims, chain: Pipeline, tmp_path: Path) -> None:
    output = tmp_path / "out" / "bundle"

    def same() -> None:
        assert (
            json.loads((output / "bundle.json").read_text())["classes"] == json.loads((chain.bundle / "bundle.json").read_text())["classes"]
        )
        for name in ("vtem.safetensors", "adapter.safetensors"):
            found, whole = load_file(output / name), load_file(chain.bundle / name)
            assert found.keys() == whole.keys()
            assert all((found[key] == whole[key]).all() for key in whole)

    def arguments() -> list[object]:
        return ["export", chain.run2, output]

    survive(victims, arguments, output, same, nothing)
