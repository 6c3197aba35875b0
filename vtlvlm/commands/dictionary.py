"""List what each code of a codebook is: how often and how long it occurs, the actions it points to, its neighbours, and pictures.

RUN is the folder of a stage-2 training, or of a stage 1 with --events. The codes are counted on the plain views of its training clips.
OUT gets dictionary.json, dictionary.safetensors, and index.html to leaf through and to search. --exemplars 3 adds three pictures of each
code from different training clips. They show people: pass them on only if the licence of your videos and the people allow it.

From Python: `EventDictionary.open(OUT)[17].actions`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with its config.yaml")
    parser.add_argument("output", type=Path, metavar="OUT", help="new folder to write")
    parser.add_argument("--events", type=Path, help="event cache, if the run names none, or if it has moved")
    parser.add_argument("--videos", type=Path, help="folder of the videos, if it has moved")
    parser.add_argument(
        "--exemplars", type=int, metavar="N", help="pictures of each code, from training clips (default: none, since they show people)"
    )


def run(args: argparse.Namespace) -> int:
    """Build, and print where it is."""
    from tqdm import tqdm

    from vtlvlm.data.of_run import data_of_run
    from vtlvlm.dictionary.building import add_exemplars, build
    from vtlvlm.dictionary.page import write_page
    from vtlvlm.errors import UsageError
    from vtlvlm.system.files import appearing
    from vtlvlm.system.text import shown

    if args.output.exists():
        raise UsageError(f"{args.output}: exists already; name a new folder")
    if args.exemplars is not None and args.exemplars < 1:
        raise UsageError(f"--exemplars {args.exemplars}: from 1; leave it out for none")
    data = data_of_run(args.run, args.events, args.videos)
    data.prepare_data()
    data.setup("fit")
    found, missing = build(data), ""
    with appearing(args.output) as folder:
        if args.exemplars is not None:

            def bar(rows: list[int]) -> Any:
                return tqdm(rows, desc="pictures", unit="clip", disable=None)

            missing = add_exemplars(found, data, folder, args.exemplars, bar)
        found.save(folder)
        write_page(found, folder)
    used = int((found.numbers["tokens"] > 0).sum())
    print(f"{args.output}: {used} of {len(found)} codes occur in {found.facts['clips']} training clips; open {args.output / 'index.html'}")
    if missing:
        print(f"vtlvlm: {shown(missing)}")
    return 0
