"""Linear probes on a feature cache: what the features tell without any language model.

Four probes, each fitted on the training people and tested on the test people: the mean feature, the means of the three thirds of
the clip (the least that knows the order of time), the middle frame alone, and the clip's length alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("root", type=Path, help="folder of the videos")
    parser.add_argument("--features", type=Path, required=True, help="feature cache of these videos")
    parser.add_argument("--protocol", default="xsub60", help="which clips train and which test (default: %(default)s)")
    parser.add_argument("--labels", help="classes.txt or CSV, as for data.labels")
    parser.add_argument("--seed", type=int, default=0, help="of the folds in which the regularisation is chosen (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Fit, test, print a table and write the figures."""
    from dataclasses import asdict

    import numpy as np

    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.report.probes import probe_suite
    from vtlvlm.report.provenance import environment, write_json
    from vtlvlm.report.tables import ResultRow, as_text, summary_table

    data = NTUDataModule(str(args.root), args.protocol, features=str(args.features), labels=args.labels, validation=0.0)
    data.setup("test")
    index, cache = data.index, data.features_cache
    assert cache is not None
    rows = np.concatenate([data.split.require("train"), data.split.require("test")])
    features = cache.features(cache.rows(index.name[rows])).numpy()
    train = np.arange(len(data.split.train))
    found = probe_suite(
        features,
        index.label[rows],
        index.subject[rows],
        cache.times(cache.rows(index.name[rows]))[:, -1].numpy(),  # the centre of the last step: the length but for half a step
        train,
        np.arange(len(train), len(rows)),
        num_classes=data.num_classes,
        seed=args.seed,
    )
    table = [ResultRow(name, r.top1, r.top5, r.mean_class, r.num_test) for name, r in found.items()]
    print(as_text(summary_table([*table, ResultRow("chance", 1 / data.num_classes)])))
    if args.output is not None:
        probes = {name: asdict(result) for name, result in found.items()}
        content = {"protocol": args.protocol, "seed": args.seed, "features": cache.hash, "split": data.split_description, "probes": probes}
        write_json(args.output, {**content, "environment": environment(args.seed)})
    return 0
