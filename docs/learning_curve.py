"""Draws learning_curve.png from learning_curve.csv: python docs/learning_curve.py"""

import csv
from collections import defaultdict
from pathlib import Path

from vtlvlm.report.style import COLOURS, house_style, new_figure, png

FOLDER = Path(__file__).parent
LOOKS = {
    "this system": (COLOURS[0], "o"),
    "thirds of both": (COLOURS[1], "s"),
    "movement": (COLOURS[2], "^"),
    "mean and movement": (COLOURS[3], "D"),
    "mean feature": (COLOURS[6], "v"),
}
PANELS = (
    ("rendered", "Rendered, 14 actions, 252 test clips", 1 / 14, (5, 10, 20, 30)),
    ("surveillance", "Surveillance, fight or none, 177 test clips", 1 / 2, (5, 10, 20, 40, 60)),
)

points = defaultdict(list)
for row in csv.DictReader((FOLDER / "learning_curve.csv").open(encoding="utf-8")):
    points[row["clips"], row["recogniser"]].append((int(row["clips_per_class"]), int(row["right"]) / int(row["tested"])))

with house_style():
    figure = new_figure(8.2, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (clips, title, chance, sizes) in zip(panels, PANELS, strict=True):
        for name, (colour, marker) in LOOKS.items():
            ours = name == "this system"
            line = {"linewidth": 2.4 if ours else 1.4, "markersize": 6 if ours else 4, "label": name if ours else f"probe: {name}"}
            axes.plot(*zip(*sorted(points[clips, name]), strict=True), color=colour, marker=marker, **line)
        axes.axhline(chance, color="#9aa3af", linestyle=":", linewidth=1)
        axes.text(5, chance - 0.045, "chance", fontsize=8, color="#6b7280")
        axes.set_xscale("log")
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.set_title(title)
        axes.set_xlabel("training clips of each action")
        axes.grid(axis="y")
    panels[0].set_ylabel("top-1")
    panels[0].set_ylim(0, 1.02)
    panels[1].legend(loc="lower right")
    (FOLDER / "learning_curve.png").write_bytes(png(figure))
