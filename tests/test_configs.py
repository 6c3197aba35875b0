"""Every configuration that is shipped can be read, says what it is for, and holds the numbers it claims."""

from pathlib import Path

import pytest
import yaml

from vtlvlm.cli import main
from vtlvlm.configs import config
from vtlvlm.errors import UsageError

FOLDER = Path(__file__).parents[1] / "lightning_configs"
STAGES = sorted(FOLDER.glob("*.yaml"))


def resolved(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(path), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.name)
def test_configuration_is_complete_and_headed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text().startswith("# Stage")
    assert "# Hardware" in path.read_text()
    found = resolved(path, capsys)
    assert found["model"]["class_path"].split(".")[-1] in ("VTEMModule", "PromptTuningModule")
    included = yaml.safe_load((FOLDER / yaml.safe_load(path.read_text())["trainer"]).read_text())
    assert included["max_steps"] > 0
    assert {key: found["trainer"][key] for key in included} == included  # a dotted key beside an include would undo the include
    assert found["data"]["batch_size"] % found["data"]["micro_batch_size"] == 0


def test_paper_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Sec. IV-A: 256 tokens of width 1024, 2048 codes, batch 128, AdamW 1e-4, 200,000 steps; then 16 prompts, 2e-3, 50,000 steps."""
    first, second = (resolved(FOLDER / name, capsys) for name in ("stage1_vtem.yaml", "stage2_prompt.yaml"))
    vtem, tuning = first["model"]["init_args"], second["model"]["init_args"]
    assert vtem["pooler"]["init_args"]["windows"] * vtem["extractor"]["init_args"]["grid"] ** 2 == 256
    assert (vtem["event_dim"], vtem["quantizer"]["init_args"]["codes"], vtem["optimizer"]["learning_rate"]) == (1024, 2048, 1e-4)
    assert (first["data"]["batch_size"], first["trainer"]["max_steps"]) == (128, 200_000)
    assert (tuning["reasoner"]["init_args"]["prompts"]["init_args"]["tokens"], tuning["optimizer"]["learning_rate"]) == (16, 2e-3)
    assert (second["data"]["batch_size"], second["data"]["micro_batch_size"], second["trainer"]["max_steps"]) == (128, 8, 50_000)


def test_config_finds_shipped_files_and_names_missing_ones() -> None:
    assert Path(config("stage1_small.yaml")) == FOLDER / "stage1_small.yaml"
    with pytest.raises(UsageError, match=r"nothing\.yaml"):
        config("nothing.yaml")
