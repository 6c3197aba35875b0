"""What is handed to Slurm, without one: command lines, the site file, and refusals."""

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from vtlvlm.cli import main
from vtlvlm.configs import shipped
from vtlvlm.errors import DataError, UsageError
from vtlvlm.slurm.site import Site, of_script
from vtlvlm.slurm.submission import STATE, Job, Submission, read_state

SCRIPTS = sorted((shipped() / "slurm").glob("*.sbatch"))
ARRAYS = ("ablation", "network")
"""Scripts of job arrays"""
STEPS = ["prepare", "extract", "stage1", "tokenize", "stage2", "test"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "videos").mkdir()
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    """The words of each step's line in a dry run."""
    assert main(["submit", "run", "videos", *arguments, "--dry-run"]) == 0, capsys.readouterr().err
    found = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    return {words[0]: words[1:] for words in found}


def test_a_dry_run_lists_the_chain(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, "--protocol", "xsub60")
    assert list(found) == STEPS
    for before, step in pairwise(STEPS):
        assert f"--dependency=afterok:{before}" in found[step]
    assert not any(word.startswith("--dependency") for word in found["prepare"])
    script = found["stage1"].index(str(shipped() / "slurm" / "stage1.sbatch"))
    run = folders / "run"
    assert found["stage1"][script + 1 :] == [
        *("fit", "--config", "stage1_vtem.yaml", "--data.source.root", str(folders / "videos"), "--data.source.protocol", "xsub60"),
        *("--data.features", str(run / "features"), "--trainer.default_root_dir", str(run / "stage1")),
    ]
    assert not run.exists()


def test_stored_states_settings_and_overlays(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlays = ["--stage1", "stage1_vtem.yaml", "ablations/codes_512.yaml"]
    (folders / "seed.yaml").write_text("seed_everything: 1\n")
    found = lines(capsys, "--hidden", *overlays, "--checkpoint", "last", "--both", "seed.yaml")
    assert list(found) == [*STEPS[:4], "hidden", *STEPS[4:]]
    assert "--dependency=afterok:hidden" in found["stage2"]
    assert str(folders / "run" / "hidden") in found["stage2"]
    assert str(folders / "run" / "events") in found["test"]
    assert str(folders / "run" / "stage1" / "checkpoints" / "last.ckpt") in found["tokenize"]
    for step in STEPS[1:]:
        assert "seed.yaml" in found[step]
        assert ("ablations/codes_512.yaml" in found[step]) == (step in ("extract", "stage1", "tokenize"))


def test_the_same_processes_on_other_nodes(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = folders / "site.yaml"
    site.write_text("gpus_per_node: 6\naccount: mine\npartition: gpu\noptions: [--qos=low]\nsteps: {stage2: [--time=01:00:00]}\n")
    found = lines(capsys, "--site", "site.yaml")
    assert {"--account=mine", "--partition=gpu", "--qos=low"} <= set(found["prepare"])
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=01:00:00"} <= set(found["stage2"])
    assert not any(word.startswith("--nodes") for step in ("prepare", "stage1") for word in found[step])
    site.write_text("gpus_per_node: 0\n")
    assert {"--gpus-per-node=0", "--ntasks-per-node=1"} <= set(lines(capsys, "--site", "site.yaml")["stage2"])


def test_the_shipped_site_is_the_default() -> None:
    assert Site.read() == Site(setup="export HF_HUB_OFFLINE=1\n")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("gpus: 4", "gpus: no such setting; there are account, "),
        ("gpus_per_node: four", "gpus_per_node: 'four' is not a whole number from 0"),
        ("gpus_per_node: -1", "is not a whole number"),
        ("options: --qos=low", "is not a list of options of sbatch"),
        ("steps: [stage2]", "is not a table of lists"),
        ("steps: {stage3: [--time=1]}", "steps: stage3: no such step; there are ablation, extract, "),
        ("a", "holds no settings"),
        ("a: [", "not a site file"),
    ],
)
def test_a_site_file_with_a_mistake(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"site\.yaml") as refused:
        Site.read(tmp_path / "site.yaml")
    assert word in str(refused.value)


def test_no_site_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such site file; copy "):
        Site.read(tmp_path / "none.yaml")


def test_no_slurm(folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(folders))
    assert main(["submit", "run", "videos"]) == 2
    assert capsys.readouterr().err.startswith("vtlvlm: squeue: no Slurm on this machine; submit from a login node")
    assert not (folders / "run").exists()


@pytest.mark.parametrize(
    "arguments", [["run", "nothing"], ["run", "videos", "--stage1", "nothing.yaml"], ["run", "videos", "--site", "no"]]
)
def test_what_does_not_exist(folders: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["submit", *arguments, "--dry-run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_state_file(tmp_path: Path) -> None:
    assert read_state(tmp_path) == {}
    for text in ("{", '{"version": 2, "jobs": {}}', '{"version": 1, "jobs": {"stage1": 7}}'):
        (tmp_path / STATE).write_text(text)
        with pytest.raises(DataError, match="delete it"):
            read_state(tmp_path)


def test_an_array_waits_also_for_jobs_that_fail(tmp_path: Path) -> None:
    job = Job("arms", "ablation", ["commands.txt"], ("features",), elements=5, any_end=True)
    options = Submission(tmp_path, Site()).options(job, ["12"])
    assert {"--array=0-4", "--dependency=afterany:12", f"--output={tmp_path}/logs/arms-%A_%a.out"} <= set(options)


def test_one_folder_has_one_name_in_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("stage1", "stage1", [])
    monkeypatch.chdir(tmp_path)
    name = Submission(tmp_path / "a", Site()).full_name(job)
    assert name == Submission(Path("a"), Site()).full_name(job)
    assert name != Submission(Path("b"), Site()).full_name(job)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_batch_scripts(script: Path) -> None:
    found = of_script(script)
    assert {"nodes", "ntasks-per-node", "cpus-per-task", "mem", "time", "requeue"} <= found.keys()
    assert found["open-mode"] == "append"
    text = script.read_text()
    assert 'srun --kill-on-bad-exit=1 "${command[@]}" "$@"' in text
    if script.stem != "prepare":
        assert found["signal"] == "SIGUSR1@120"
        one = "element" if script.stem in ARRAYS else "SLURM_JOB_ID"
        assert text.count(f'scontrol requeue "${one}"') == text.count("scontrol requeue") == 2
        assert f'75) scontrol requeue "${one}" ;;' in text


@pytest.mark.parametrize("name", ARRAYS)
def test_an_element_of_an_array_requeues_itself_alone(name: str) -> None:
    """The number of the array would requeue all elements, also finished ones. The last element has this number as its SLURM_JOB_ID."""
    text = (shipped() / "slurm" / f"{name}.sbatch").read_text()
    assert "element=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" in text
    assert "$SLURM_JOB_ID" not in text


def test_every_step_has_a_script() -> None:
    assert {path.stem for path in SCRIPTS} == {*STEPS, "hidden", *ARRAYS}
