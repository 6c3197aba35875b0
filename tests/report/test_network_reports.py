"""Reports of recognition networks: what they are and read, beside published figures, and reconstructions that always say so."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from works import run_entry, write_grid, write_run

from vtlvlm.cli import main
from vtlvlm.configs import shipped
from vtlvlm.report.grid_sections import grid_section
from vtlvlm.report.grids import open_grids
from vtlvlm.report.networks import Described, described, marked, of_run
from vtlvlm.report.paper_tables import table_one
from vtlvlm.report.quotes import quotes
from vtlvlm.report.scores import collect, compare
from vtlvlm.report.study import runs_document, work_document
from vtlvlm.report.tables import NOT_RUN, Table
from vtlvlm.system.files import write_json

BASELINES = shipped() / "baselines"
METHODS = {
    "ctr_gcn": "CTR-GCN",
    "st_gcn": "ST-GCN",
    "shift_gcn": "Shift-GCN",
    "infogcn": "InfoGCN",
    "posec3d": "PoseC3D",
    "fr_head": "FR-Head",
    "koopman": "Koopman",
    "gap": "GAP",
    "hd_gcn": "HD-GCN",
    "stc_net": "STC-Net",
}
SKELETON = {"method": "CTR-GCN", "reads": "3D skeleton", "stream": "joint"}
STC = {"method": "STC-Net", "reads": "3D skeleton", "stream": "joint", "reconstruction": True}
VIDEO = {"method": "r3d_18", "reads": "RGB video", "stream": ""}


def raw(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((BASELINES / f"{name}.yaml").read_text())
    return found


def write_network(folder: Path, accuracy: float, config: str = "ctr_gcn_small", **more: Any) -> Path:
    """A tested run folder of a network, with its configuration."""
    write_run(folder, accuracy, probe=None, **more)
    content = json.loads((folder / "metrics.json").read_text())
    content["provenance"] |= {"layout": "kinect20", "sampling": {"stream": "joint"}}
    del content["provenance"]["adapter"]
    write_json(folder / "metrics.json", content)
    (folder / "config.yaml").write_text((BASELINES / f"{config}.yaml").read_text())
    return folder


def arm(work: Path, name: str, accuracy: float, settings: dict[str, Any] | None = None, number: int = 1, **more: Any) -> dict[str, Any]:
    """An arm with its tested runs, one for each seed: a network if it has settings, else of stage 2."""
    runs, extra = [], {key: more.pop(key) for key in ("label", "paper") if key in more}
    for seed in range(number):
        place = f"{'recognition' if settings else 'stage2'}/{name}{seed}"
        write_run(work / place, accuracy, seed=seed, probe=None if settings else 0.7, **more)
        entry = run_entry(None if settings else place, seed, fold=more.get("protocol", "xsub60"))
        runs.append({**entry, "recognition": place} if settings else entry)
    return {"name": name, "runs": runs, "settings": settings or {}, **extra}


def rows(table: Table) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in table.rows}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_shipped_network_is(name: str) -> None:
    stream = "ancestor:8" if name in ("infogcn", "gap") else "joint"
    for config, reads in ((name, "2D skeleton" if name == "posec3d" else "3D skeleton"), (f"{name}_small", "3D skeleton")):
        assert described(raw(config)) == Described(METHODS[name], reads, stream, name == "stc_net")


def test_what_a_network_of_videos_is() -> None:
    extractor = {"class_path": "a.VideoExtractor", "init_args": {"model": "r3d_18"}}
    for network, method in (
        ({"class_path": "a.VideoNetwork", "init_args": {"model": "swin3d_t"}}, "swin3d_t"),
        ({"class_path": "a.FrozenFeatures", "init_args": {"extractor": extractor}}, "r3d_18, frozen"),
        ({"class_path": "a.Another", "init_args": {}}, "Another"),
    ):
        config = {"model": {"class_path": "Recognition", "init_args": {"network": network, "head": "LinearHead"}}, "data": {"source": {}}}
        assert described(config) == Described(method, "RGB video")


def test_a_reconstruction_is_marked_once() -> None:
    assert marked("STC-Net", True) == "STC-Net (our reconstruction)" == marked(marked("STC-Net", True), True)
    assert marked("ST-GCN", False) == "ST-GCN"


def test_a_table_says_what_each_row_reads(tmp_path: Path) -> None:
    arms = [
        arm(tmp_path, "full", 0.9, None, 2, paper=94.1),
        arm(tmp_path, "ctr", 0.7, SKELETON, 2, label="CTR-GCN"),
        arm(tmp_path, "stc", 0.4, STC, 2, label="STC-Net", paper=91.0),
        {"name": "r3d", "label": "r3d_18", "settings": VIDEO, "runs": [run_entry(None, 0, "not run")]},
    ]
    write_grid(tmp_path, "table1", arms, table="I")
    result = collect(open_grids(tmp_path)[0])
    section = grid_section(result)
    table = section.tables[0]
    assert list(table.header[:5]) == ["arm", "reads at test", "top-1, %", "seeds", "minus the first"]
    found = rows(table)
    assert found["full"][0] == found["best linear probe on the same features"][0] == found["r3d_18"][0] == "RGB video"
    assert found["CTR-GCN"][0] == "3D skeleton, joint"
    assert found["CTR-GCN"][3].startswith("−")
    assert found["r3d_18"][1:3] == [NOT_RUN, "0"]
    assert "STC-Net (our reconstruction)" in found
    assert "do not have the same input" in section.text
    assert "our reading of a method without published code" in section.text
    assert "on which the paper's figures were made" in section.text
    pictures = {picture.name: picture.caption for picture in section.pictures}
    assert pictures.keys() == {"table1-confusion", "table1-calibration", "table1-classes"}
    assert "STC-Net (our reconstruction) minus full" in pictures["table1-classes"]
    origins = rows(work_document(tmp_path, figures=False).sections[-1].tables[0])
    assert list(origins) == ["table1: full", "table1: CTR-GCN", "table1: STC-Net (our reconstruction)"]


def test_table_one_has_a_row_for_each_network_that_tested_a_whole_protocol(tmp_path: Path) -> None:
    """A grid whose first arm is a network does not pass as ours."""
    official = {key: protocol.with_skeletons for key, protocol in quotes().protocols.items()}
    for protocol in ("xsub60", "xview60"):
        arms = [arm(tmp_path, f"ctr-{protocol}", 0.9, SKELETON, label="CTR-GCN", clips=official[protocol], protocol=protocol)]
        arms.append(arm(tmp_path, f"few-{protocol}", 0.9, STC, label="STC-Net", clips=50, protocol=protocol))
        write_grid(tmp_path, f"table1_{protocol}", arms, table="I", protocol=protocol)
    table = table_one([collect(grid) for grid in open_grids(tmp_path)]).tables[0]
    ours = table.rows[-3:]
    assert list(ours[0]) == ["event sentences, prompt-tuned LLaVA", "RGB video", *[NOT_RUN] * 4]
    assert list(ours[2][:2]) == ["CTR-GCN", "3D skeleton, joint"]
    assert [cell == NOT_RUN for cell in ours[2][2:]] == [False, False, True, True]
    assert table.strong == {len(table.rows) - 3}


def test_published_figures_stand_beside_ours_on_northwestern_ucla_alone(tmp_path: Path) -> None:
    classes = [f"action {number}" for number in range(10)]
    for clips, protocol, there in ((464, "cameras:1,2", True), (60, "cameras:1,2", False), (464, "cameras:1", False)):
        work = tmp_path / f"{clips}-{protocol[-1]}"
        fr = {**SKELETON, "method": "FR-Head"}
        arms = [arm(work, "fr", 0.8, fr, label="mine", clips=clips, protocol=protocol, classes=classes)]
        write_grid(
            work, "ucla", [*arms, arm(work, "ctr", 0.7, SKELETON, clips=clips, protocol=protocol, classes=classes)], protocol=protocol
        )
        section = grid_section(collect(open_grids(work)[0]))
        table = section.tables[0]
        assert ("published, joint / fused, %" in table.header) == there
        if there:
            assert [row[-1] for row in table.rows] == ["94.4 / 96.8", "– / 96.5"]
            assert [table.name for table in section.tables] == ["ucla", "ucla-published"]


def test_methods_that_lack_a_few_clips_are_compared_on_the_others(tmp_path: Path) -> None:
    """A skeleton network has no answer to clips without a skeleton: 98 of 100 clips are in both. Of 90, too few."""
    arms = [arm(tmp_path, "full", 1.0, clips=100), arm(tmp_path, "ctr", 0.0, SKELETON, clips=98), arm(tmp_path, "few", 0.0, STC, clips=90)]
    write_grid(tmp_path, "table1", arms, table="I")
    result = collect(open_grids(tmp_path)[0])
    paired = compare(result.of("ctr"), result.of("full"))
    assert paired.difference is not None
    assert (paired.difference.mean, paired.clips) == (-1.0, 98)
    assert compare(result.of("few"), result.of("full")).why_not == "tested on other clips"
    assert compare(result.of("ctr"), result.of("ctr")).clips is None
    section = grid_section(result, pictures=False)
    found = rows(section.tables[0])
    assert found["ctr"][3] == "98"
    assert found["ctr"][4].endswith("] on 98 clips")
    assert section.text.startswith("90 to 100 test clips")


def test_single_runs_of_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"protocol": "cameras:1,2"}
    ctr, stc = write_network(tmp_path / "ctr", 0.9, **more), write_network(tmp_path / "stc", 0.6, "stc_net_small", **more)
    ours = write_run(tmp_path / "ours", 0.7, **more)
    section = runs_document([ctr, stc]).sections[0]
    assert section.title == "Recognition networks: cameras:1,2, 60 test clips"
    table = section.tables[0]
    assert not {"adapter", "linear probe, %"} & {*table.header}
    found = rows(table)
    assert found["ctr"][1:3] == ["CTR-GCN", "3D skeleton, joint"]
    assert found["stc (our reconstruction)"][1] == "STC-Net (our reconstruction)"
    assert any("stc (our reconstruction)" in picture.caption for picture in section.pictures)
    mixed = runs_document([ours, ctr], figures=False).sections[0]
    assert mixed.title == "Stage 2 and recognition networks: cameras:1,2, 60 test clips"
    assert rows(mixed.tables[0])["ours"][1:4] == ["", "RGB video", "DeepPrompts"]
    assert main(["report", str(ctr), str(stc), "--output", str(tmp_path / "out")]) == 0
    header = next(csv.reader((tmp_path / "out" / "tables" / "runs-1.csv").read_text().splitlines()))
    assert header[:4] == ["run", "seed", "network", "reads at test"]
    assert "STC-Net (our reconstruction)" in (tmp_path / "out" / "report.html").read_text()
    capsys.readouterr()


def test_half_a_run_and_an_older_file_have_a_line_each(tmp_path: Path) -> None:
    good = arm(tmp_path, "good", 0.9, SKELETON)
    (tmp_path / "recognition" / "half").mkdir()
    (tmp_path / "recognition" / "half" / "config.yaml").write_text("model: [")
    write_json(tmp_path / "recognition" / "old" / "metrics.json", {"accuracy": 0.9})
    entries = [{**run_entry(None, seed, fold="xsub60"), "recognition": f"recognition/{name}"} for seed, name in enumerate(("half", "old"))]
    other = arm(tmp_path, "view", 0.9, SKELETON, protocol="xview60")
    for run in other["runs"]:
        run["fold"] = "xsub60"
    write_grid(tmp_path, "g", [good, {"name": "bad", "settings": STC, "runs": entries}, other], table="I")
    said = [out.reason for out in collect(open_grids(tmp_path)[0]).left_out]
    words = (
        "half-written, its training wrote no checkpoint",
        "not the format of this version",
        "tested under xview60, and this table is of xsub60",
    )
    assert len(said) == 3
    assert all(word in reason for word, reason in zip(words, said, strict=True))
    assert of_run(tmp_path / "recognition" / "half") is None  # a damaged configuration is no network
    assert of_run(tmp_path) is None
