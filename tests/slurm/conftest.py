"""The cluster, the clips, and a chain that is left alone, for all tests on a real Slurm."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain import Clips, numbers_of, until_done
from cluster import Cluster, missing, running

from vtlvlm.cli import main


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing() or os.geteuid():
        pytest.fail(f"needs root and Debian's slurm-wlm and munge (missing: {', '.join(missing()) or 'root'})")
    with running(tmp_path_factory.mktemp("slurm")) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.environment["SLURM_CONF"])
        yield started


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def alone(cluster: Cluster, clips: Clips) -> Path:
    run = clips.folder / "alone"
    assert main(clips.submit_words(run, 0)) == 0
    until_done(cluster, run, numbers_of(run))
    return run
