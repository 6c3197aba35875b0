"""Makes the sections of the paper's tables that stand above single grids: Table I, Table IV, and quotes of tables that were not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vtlvlm.errors import DataError
from vtlvlm.report.document import Section
from vtlvlm.report.grid_sections import listed, percent, probe_row
from vtlvlm.report.networks import VIDEO
from vtlvlm.report.quotes import on_ntu, quotes
from vtlvlm.report.scores import ArmResult, GridResult
from vtlvlm.report.tables import NOT_RUN, Table, quantity
from vtlvlm.report.tested import Tested

OURS = "this code"


def table_one(results: Sequence[GridResult]) -> Section:
    """Table I: quoted accuracies on NTU RGB+D, and ours where a grid tested a whole protocol of it."""
    known = quotes()
    header = ["method", "reads at test", *(protocol.title for protocol in known.protocols.values())]
    rows: list[list[str]] = []
    headings = {}
    for group, methods in known.table1.items():
        headings[len(rows)] = group
        for method in methods:
            figures = [method.accuracy[key] for key in known.protocols]
            rows.append([method.method, method.modality, *map(_as_published, figures)])
    headings[len(rows)] = f"{OURS[0].upper()}{OURS[1:]}"
    found = {key: _on_protocol(results, key) for key in known.protocols}
    rows.append(["event sentences, prompt-tuned LLaVA", VIDEO, *map(_ours, found.values())])
    probes = [probe_row([arm], 2) if arm is not None else [] for arm in found.values()]
    rows.append(["best linear probe on the same features", VIDEO, *(probe[0][1] if probe else NOT_RUN for probe in probes)])
    strong = len(rows) - 2
    rows += [[label, reads, *(_ours(per.get(key)) for key in known.protocols)] for (label, reads), per in _networks_on_ntu(results).items()]
    table = Table(header, rows, frozenset({strong}), headings, "table1", "Top-1 on the test clips, %.")
    remarks = [[row.method, row.remark, row.source] for methods in known.table1.values() for row in methods]
    text = (
        "The paper's nine baselines read skeletons at test; VT-LVLM-AR and our event sentences read RGB video. Our runs of the baselines "
        "and of other networks say in their row what they read, and the stream. Methods that read 3D skeletons leave "
        "out the clips without one (302 of NTU RGB+D 60, 535 of 120); video methods need not. Each baseline is quoted with one stream: "
        "its published ensembles are higher (below)."
        "\n\nThe paper's 94.1 is below RGB SlowOnly with ten clips (95.1), and its figures on NTU RGB+D 120 are below pi-ViT's. On 120 "
        "X-Set, PoseC3D's 89.7 in the paper's own table is above its 88.5."
    )
    notes = Table(["method", "what the figure is", "source"], remarks, name="table1-quotes", caption="What the quotes are.")
    return Section("Table I: action recognition on NTU RGB+D", text, tables=[table, notes])


def _ours(arm: ArmResult | None) -> str:
    return NOT_RUN if arm is None else percent(arm.mean, arm.deviation)


def _networks_on_ntu(results: Sequence[GridResult]) -> dict[tuple[str, str], dict[str, ArmResult]]:
    """Label and input of each network that a grid of Table I tests on NTU RGB+D → protocol → its result with the most seeds."""
    found: dict[tuple[str, str], dict[str, ArmResult]] = {}
    for result in results:
        if result.grid.table != "I" or result.grid.metric != "top1":
            continue
        for arm in result.arms:
            official = {run.metrics.protocol for run in arm.tested}
            if not (arm.arm.network and arm.seeds and len(official) == 1 and on_ntu(protocol := official.pop(), arm.clips)):
                continue
            place = found.setdefault((arm.arm.label, arm.arm.reads), {})
            if protocol not in place or len(arm.seeds) > len(place[str(protocol)].seeds):
                place[str(protocol)] = arm
    return found


def _as_published(figure: float | None) -> str:
    """A figure with the digits that its source has, at least one."""
    return "" if figure is None else f"{figure:.1f}" if round(figure, 1) == figure else f"{figure:.2f}"


def _on_protocol(results: Iterable[GridResult], protocol: str) -> ArmResult | None:
    """The first arm of both stages, of the grid of Table I that tested this protocol as a whole, with the most seeds."""
    fitting = []
    for result in results:
        arm = next((result.of(name) for name in result.grid.compare if not result.grid.arm(name).network), None)
        if arm is not None and result.grid.table == "I" and result.grid.metric == "top1" and arm.seeds:
            tested = {run.metrics.protocol for run in arm.tested}
            fitting += [arm] * (tested == {protocol} and on_ntu(protocol, arm.clips))
    return max(fitting, key=lambda arm: len(arm.seeds), default=None)


def quoted_section(table: str) -> Section:
    """A table of the paper for which no grid was run: its figures, and ``not run`` beside them."""
    found = quotes().ablations[table]
    rows = [[name, NOT_RUN, f"{top1:.1f}"] for name, top1 in found.rows]
    return Section(
        f"Table {table}: {found.title}",
        "No grid of this table was run. The paper's figures are top-1 on NTU RGB+D 60 X-Sub, in percent.",
        tables=[Table(["arm", "top-1, %", "paper, %"], rows, frozenset({0}), name=f"table{table}-paper")],
    )


def table_four(efficiency: Path | None) -> Section:
    """Table IV: cost of the paper's methods as quoted, and ours from ``vtlvlm bench efficiency``.

    Args:
        efficiency: The JSON file of the bench; None if there is none.

    Raises:
        DataError: The file is damaged or of another bench.
    """
    known = quotes().table4
    content = None if efficiency is None else _bench(efficiency)
    rows = [[row.method, row.parameters, "", row.seconds, "", row.remark] for row in known]
    headings = {0: "Quoted from the paper, which does not name its machine"}
    if content is None:
        headings[len(rows)] = "This code: vtlvlm bench efficiency --output WORK/efficiency.json"
        rows.append([OURS, NOT_RUN, NOT_RUN, NOT_RUN, NOT_RUN, ""])
    for part in () if content is None else content["tables"]:
        headings[len(rows)] = str(part["title"])
        for row in part["rows"]:
            rows.append(
                [
                    str(row["stage"]),
                    _millions(row["trainable_parameters"]),
                    _or_blank(row["flops"], 1e9, "{:,.1f}"),
                    NOT_RUN if row["seconds"] is None else f"{row['seconds']:.3f}",
                    NOT_RUN if row["seconds"] is None else _or_blank(row["peak_bytes"], 2**30, "{:.2f}"),
                    str(row["note"]),
                ]
            )
    header = ["", "trained parameters, M", "GFLOP a clip", "seconds a clip", "peak GiB", "remark"]
    text = (
        "Seconds of different machines do not compare. FLOPs count multiplications and additions of matrix products, convolutions and "
        "attention. Two of the paper's parameter counts are not those of the methods it names (see the remarks)."
    )
    return Section("Table IV: cost", text, tables=[Table(header, rows, headings=headings, name="table4")])


def _bench(path: Path) -> dict[str, Any]:
    remedy = "run `vtlvlm bench efficiency` again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        columns = ("stage", "trainable_parameters", "flops", "seconds", "peak_bytes", "note")
        whole = content["bench"] == "efficiency" and all(
            {*columns} <= {*row} and part["title"] for part in content["tables"] for row in part["rows"]
        )
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the JSON of bench efficiency ({type(error).__name__}); {remedy}") from error
    if not whole:
        raise DataError(f"{path}: the JSON of another bench or version; {remedy}")
    return dict(content)


def _millions(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.2f}"


def _or_blank(value: float | None, unit: float, form: str) -> str:
    return "" if value is None else form.format(value / unit)


def provenance_table(named: Iterable[tuple[str, Sequence[Tested]]]) -> Table:
    """Origin of each result: protocol, clips, seeds, commit, versions and device. Several values in a cell mean runs that differ.

    Args:
        named: Name of a grid or run, and its runs with results.
    """
    rows = []
    for name, runs in named:
        environments = [_environment(run) for run in runs]
        devices = [run.metrics.device or {} for run in runs]
        rows.append(
            [
                name,
                str(len(runs)),
                listed(run.metrics.protocol for run in runs),
                listed(run.metrics.seed for run in runs),
                listed(_commit(found) for found in environments),
                listed(found.get("versions", {}).get("torch") for found in environments),
                listed(found.get("versions", {}).get("transformers") for found in environments),
                listed(_device(device, found) for device, found in zip(devices, environments, strict=True)),
                listed(quantity(run.fit.trainable_parameters) for run in runs if run.fit is not None),
            ]
        )
    header = ["", "runs", "protocol", "seeds", "commit", "torch", "transformers", "device", "trained parameters"]
    return Table(header, rows, name="provenance")


def _environment(run: Tested) -> dict[str, Any]:
    found = run.metrics.provenance.get("environment")
    return found if isinstance(found, dict) else {}


def _commit(environment: dict[str, Any]) -> str | None:
    state = environment.get("git")
    return (
        f"{str(state['commit'])[:7]}{' and changes' if state.get('dirty') else ''}"
        if isinstance(state, dict) and "commit" in state
        else None
    )


def _device(device: dict[str, Any], environment: dict[str, Any]) -> str | None:
    name, count = device.get("name"), device.get("count", 1)
    if name == "cpu":
        machine = environment.get("machine", {})
        return f"{machine.get('cpu', 'cpu')}, {machine.get('cores', '?')} cores"
    return None if name is None else f"{count} x {name}"
