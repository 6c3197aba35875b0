"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipeline import Pipeline

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``gpu`` if PyTorch finds no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def no_process_group_stays() -> Iterator[None]:
    """A test that trains under ddp in this process leaves a process group, in which a forked child of another test would wait for ever."""
    yield
    if (distributed := sys.modules.get("torch.distributed")) is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


LONGEST = (
    "tests/ablation/test_study.py",
    "tests/test_configs.py",
    "tests/stages/test_hidden_states.py",
    "tests/test_pipeline.py",
    "tests/stages/test_prompt_tuning.py",
    "tests/bench/test_gpu.py",
    "tests/test_golden.py",
    "tests/vtem/test_extractors.py",
    "tests/test_adapter_runs.py",
    "tests/commands/test_fetch.py",
    "tests/ablation/test_runner.py",
)
"""Modules that take longest"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest modules first: of several processes that share the modules, none is left with a long one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONGEST)))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real inputs named by VTLVLM_TEST_DATA, holding ``weizmann``, ``clips`` and ``ntu``."""
    folder = os.environ.get("VTLVLM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set VTLVLM_TEST_DATA to the folder of real test inputs (weizmann, clips, ntu) to run this test")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The whole chain, run once. Tests read its files, and write elsewhere. The import is inside, because some machines lack PyAV."""
    from pipeline import Pipeline

    run = Pipeline(tmp_path_factory.mktemp("chain"))
    run.run()
    return run
