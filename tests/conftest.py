"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from pipeline import Pipeline

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real inputs named by VTLVLM_TEST_DATA, holding ``weizmann``, ``clips`` and ``ntu``."""
    folder = os.environ.get("VTLVLM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set VTLVLM_TEST_DATA to the folder of real test inputs (weizmann, clips, ntu) to run this test")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The whole chain run once; tests read what it left, and write elsewhere."""
    run = Pipeline(tmp_path_factory.mktemp("chain"))
    run.run()
    return run
