"""Fuse the tests of several runs: the streams of a skeleton network, several networks, or a skeleton network and a VT-LVLM.

Each run is a folder with metrics.json and predictions_test.csv, as `vtlvlm test` writes them. All must have been trained and tested on the
same clips, with the same classes under the same protocol. The score of a class is the weighted mean of the logarithms of its calibrated
probabilities. The folder of the result is read by `vtlvlm report` as a run.

Choose weights before you see the test, from a paper or from validation clips. Weights that were chosen on the test clips make the result
look too good. Without --weights all streams count equally.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

FILES = ("predictions_test.csv", "confusion_test.json", "versions.json")
"""What a fusion writes before its metrics.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of tested runs, two or more")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="one weight for each run, in their order (default: equal)")
    parser.add_argument(
        "--normalise",
        choices=("none", "l2"),
        default="none",
        help="l2 divides the scores of each clip by their L2 norm before they are added, as HD-GCN does (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; the result of an earlier fusion there is replaced")


def run(args: argparse.Namespace) -> int:
    """Write the folder, and print the streams beside their fusion."""
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_apart, same

    runs: list[Path] = args.runs
    if len(runs) < 2:
        raise UsageError(f"{runs[0]}: one run is no fusion; name two or more")
    for number, folder in enumerate(runs):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; name run folders that `vtlvlm test` has written")
        if any(same(folder, other) for other in runs[:number]):
            raise UsageError(f"{folder}: named twice; name each run once, and give it a larger weight with --weights")
    weights = checked_weights(args.weights, len(runs))
    require_apart(args.output, runs, "the fusion")
    require_replaceable(args.output)
    from vtlvlm.report.fusion import fuse, fusion_table, read_stream, write_fusion
    from vtlvlm.report.tables import as_text
    from vtlvlm.system.text import shown

    fusion = fuse([read_stream(folder) for folder in runs], weights, args.normalise)
    files = write_fusion(fusion, args.output)
    first, gain = fusion.streams[0], fusion.difference
    print(f"{first.metrics.protocol}, {len(first.predictions.clips):,} test clips\n")
    print(as_text(fusion_table(fusion)))
    interval = f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    print(f"\nfusion minus the best stream, {shown(runs[fusion.best])}: {interval}, paired over clips")
    print("\n".join(shown(file) for file in files))
    return 0


def checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of ``count`` runs; ones if none are given.

    Raises:
        UsageError: Another number of weights, one that is negative or no finite number, or none above zero.
    """
    from vtlvlm.errors import UsageError

    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise UsageError(f"--weights: {len(weights)} weights for {count} runs; give one for each")
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise UsageError(f"--weights {weight:g}: give numbers from 0")
    if not any(weights):
        raise UsageError("--weights: all are 0; give at least one run a weight above 0")
    return list(weights)


def require_replaceable(output: Path) -> None:
    """Refuse an output that holds anything but an earlier fusion.

    Raises:
        UsageError: The message names it.
    """
    from vtlvlm.errors import UsageError

    remedy = "name a new folder, or that of an earlier fusion"
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is a file; {remedy}")
    names = {path.name for path in output.iterdir() if path.suffix != ".tmp"} if output.is_dir() else set()
    if names <= {*FILES}:  # nothing, or a fusion that was interrupted
        return
    try:
        known = "fusion" in json.loads((output / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UsageError(f"{output}: holds files that are no fusion; {remedy}")
