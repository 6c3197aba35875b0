"""Fit linear probes on a feature cache: what the features encode without a language model, and what stage 1 keeps.

Seven linear probes are fitted on the training people and tested on the test people. They read the mean feature; the movement (mean
absolute change from step to step); both side by side; the means of the three thirds of the clip (the simplest vector that encodes the
order of time); means and movements of the thirds; the middle frame; the clip's length.

--vtem CHECKPOINT also probes features, windows, continuous events and codes, to show where stage 1 loses the action. Each gets a linear
probe on the mean and one layer of attention on the sequence. The seven probes train on each clip's plain view. With few clips, the
probes of --vtem also train on the other stored views, so "mean feature" and "features: linear, mean" differ.

--export BUNDLE turns one probe into a recogniser: the best one on held-out training people, or the one named with --probe. It is fitted
on the plain views of the training people, and its temperature on predictions for held-out people. `vtlvlm classify --model BUNDLE`
reads it like any other bundle. It has no event sentences.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.vtem.extractors import FeatureExtractor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("root", type=Path, nargs="?", help="folder of the videos; not needed where the cache carries their index")
    parser.add_argument("--features", type=Path, required=True, help="feature cache of these videos")
    parser.add_argument("--protocol", default="xsub60", help="split of training and test clips (default: %(default)s)")
    parser.add_argument("--labels", help="classes.txt or CSV, as for data.source.labels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the folds that choose the regularisation (default: %(default)s)")
    parser.add_argument("--vtem", type=Path, help="stage-1 checkpoint; also probe each of its steps")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--export", type=Path, metavar="BUNDLE", help="new folder to write a probe to, for classify")
    parser.add_argument(
        "--probe", metavar="NAME", help="with --export: the probe to write, a row of the table that reads whole clips (default: the best)"
    )
    parser.add_argument("--weights", help="with --export: the extractor's weights, if they have moved; a file or package:NAME")


def run(args: argparse.Namespace) -> int:
    """Fit and test the probes, print a table, and write the results."""
    from dataclasses import asdict

    import numpy as np

    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.data.source import ClipSource
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.probes.kept import KeptProbes
    from vtlvlm.probes.linear import SUITE, VECTORS, best_probe, probe_suite
    from vtlvlm.report.provenance import environment
    from vtlvlm.report.tables import ResultRow, as_text, summary_table
    from vtlvlm.system.files import write_json
    from vtlvlm.system.places import require_json_place

    if args.output is not None:
        require_json_place(args.output)
    if args.export is not None:
        require_bundle_place(args)
    elif args.probe or args.weights:
        raise UsageError(f"{'--probe' if args.probe else '--weights'} goes with --export: add --export, or leave it out")
    if args.probe is not None and args.probe not in VECTORS:
        raise UsageError(f"--probe {args.probe}: no probe to export; there are {', '.join(VECTORS)}")
    root = None if args.root is None else str(args.root)
    data = NTUDataModule(ClipSource(root, args.protocol, args.labels, validation=0.0), features=str(args.features))
    data.setup("test")
    index, cache = data.index, data.features_cache
    assert cache is not None
    rows = np.concatenate([data.split.require("train"), data.split.require("test")])
    features = cache.features(cache.rows(index.name[rows])).numpy()
    if not np.isfinite(features).all():
        raise DataError(f"{args.features}: holds nan or infinity; delete the folder and run `vtlvlm extract` again")
    train = np.arange(len(data.split.train))
    extractor = None
    if args.export is not None:
        from vtlvlm.recognizers.probe import extractor_of

        extractor = extractor_of(cache, args.weights)
    sides = index.label[rows], index.group[rows], train, np.arange(len(train), len(rows))
    lengths = cache.times(cache.rows(index.name[rows]))[:, -1].numpy()  # the centre of the last step: the length minus half a step
    kept = KeptProbes(cache, index.name[rows], *sides, num_classes=data.num_classes, seed=args.seed)
    found = kept.read()
    if not set(SUITE) <= set(found):
        labels, groups, *both = sides
        found = probe_suite(features, labels, groups, lengths, *both, num_classes=data.num_classes, seed=args.seed)
        kept.add(found)
    found = {name: found[name] for name in SUITE}
    chosen = args.probe or best_probe(found)
    if args.vtem is not None:
        from vtlvlm.probes.stage1 import step_probes

        found |= step_probes(data, args.vtem, args.seed)
    table = [ResultRow(name, r.top1, r.top5, r.mean_class, r.num_test) for name, r in found.items()]
    print(as_text(summary_table([*table, ResultRow("chance", 1 / data.num_classes)])))
    if args.output is not None:
        probes = {name: asdict(result) for name, result in found.items()}
        content = {"protocol": args.protocol, "seed": args.seed, "features": cache.hash, "split": data.split_description, "probes": probes}
        content |= {"clips": index.name[data.split.test].tolist(), "truth": index.label[data.split.test].tolist()}
        write_json(args.output, {**content, "environment": environment(args.seed)})
    if extractor is not None:
        export(args, data, extractor, features[train], chosen)
    return 0


def require_bundle_place(args: argparse.Namespace) -> None:
    """Refuse an existing bundle folder, or one that overlaps its sources, before anything is computed."""
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.bundles import new_folder
    from vtlvlm.system.places import require_apart, within

    new_folder(args.export)
    require_apart(args.export, [args.root, args.features, args.labels, args.vtem], "the bundle")
    if args.output is not None and within(args.output, args.export):
        raise UsageError(f"{args.output}: lies in the bundle {args.export}; name a file outside it")


def export(args: argparse.Namespace, data: NTUDataModule, extractor: FeatureExtractor, features: NDArray[np.generic], name: str) -> None:
    """Fit the named probe on the training clips' features (N, T', S, D) and bundle it."""
    from vtlvlm.data.cache_format import made_of
    from vtlvlm.probes.linear import clip_vectors, fit_probe
    from vtlvlm.recognizers.probe import ProbeModel, export_probe, temperature_of
    from vtlvlm.report.provenance import environment

    cache, rows = data.features_cache, data.split.train
    assert cache is not None
    labels = data.index.label[rows]
    fitted = fit_probe(clip_vectors(features)[name], labels, groups=data.index.group[rows], num_classes=data.num_classes, seed=args.seed)
    temperature = temperature_of(fitted, labels)
    origin = {
        "protocol": data.source.protocol,
        "split": data.split_description,
        "train_hash": data.train_hash,
        "seed": args.seed,
        "num_train": len(rows),
        "strength": fitted.strength,
        "chosen_accuracy": fitted.chosen_accuracy,
        "temperature": temperature,
        "features": cache.hash,
        "environment": environment(args.seed),
    }
    model = ProbeModel(extractor, name, fitted.probe, temperature)
    folder = export_probe(args.export, model, list(data.classes), made_of(cache, "sampling", dict), origin)
    print(
        f"{folder}: linear probe ({name}), {fitted.chosen_accuracy:.3f} on held-out people of {len(rows)} training clips, temperature "
        f"{temperature:.3g}; classify with: vtlvlm classify --model {folder} FILE"
    )
