"""Imports between rooms (folders and top-level modules of the package) point one way, and CONTRIBUTING.md draws them as they are."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vtlvlm"
MODULES = {
    ".".join(("vtlvlm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")
}
LAYERS = (
    {"errors"},
    {"system"},
    {"batches", "configs", "metrics", "web"},
    {"data", "vtem", "lvlm", "report"},
    {"skeleton"},
    {"stages", "synth"},
    {"dictionary", "rejection", "retrieval", "segments"},
    {"callbacks", "probes", "ratings", "slurm"},
    {"recognizers"},
    {"app"},
    {"cli"},  # finds commands by their names, when one is asked for
    {"ablation", "bench", "proxies"},
    {"commands"},
    {"__main__"},
)
"""Lowest first; a room imports from lower layers only"""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows() -> dict[tuple[str, str], str]:
    """(importing room, imported room) -> one of the modules that does it, also inside functions; the package itself left out."""
    found = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vtlvlm":
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
                imported = [full if full in MODULES else node.module for full in imported]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names if alias.name.split(".")[0] == "vtlvlm"]
            else:
                continue
            for other in imported:
                if room(name) and room(other) and room(name) != room(other):
                    found[room(name), room(other)] = name
    return found


def test_every_room_has_a_layer() -> None:
    rooms = {room(name) for name in MODULES} - {""}
    assert rooms == set.union(*LAYERS)


def test_arrows_point_down() -> None:
    height = {name: level for level, rooms in enumerate(LAYERS) for name in rooms}
    upward = [f"{module} imports {after}" for (before, after), module in arrows().items() if height[after] >= height[before]]
    assert not upward


def test_rooms_without_layers_make_no_circle() -> None:
    """What the layers already imply, found by another route."""
    graph: dict[str, set[str]] = {}
    for before, after in arrows():
        graph.setdefault(before, set()).add(after)
    assert list(TopologicalSorter(graph).static_order())


def test_the_top_of_the_package_holds_few_files() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_contributing_names_every_room() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = [name for name in set.union(*LAYERS) - {"__main__"} if f"`{name}`" not in text]
    assert not missing
