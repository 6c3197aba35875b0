"""Search the clips of an event cache: clips like a clip, clips of an action or a sentence, or clips with a pattern of codes.

QUERY is one of these (--as says which, where it is not clear):

  a clip      its name in the cache, or a video file. A file needs --model, the bundle or run that made the cache.
  a text      the name of an action of the cache, which the codes of the training clips tell; or, with --model, any sentence: the language
              model tells by how many nats each clip makes it likelier than all clips do. It reads every clip.
  a pattern   of codes: `17 then 402 within 2 s`, `17 or 18 then 402 in one cell`. A step is a window that holds one of its codes; `then`
              asks for a later one, `within` for one that starts at most so many seconds after the one before ended.

Clips are compared by what their codes say of the action, learned from the training clips of the cache, and among clips of one action by
how they do it: tf-idf of the codes and of their changes within a cell, and for the 200 best an alignment in time. The index is made at the
first search and kept in the cache's folder.

--evaluate measures the search on the test clips, whose people it has not learned from: --in EVENTS --evaluate predictions_test.csv; several
of both are seeds of one experiment.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtlvlm.retrieval.search import EventSearch, Hit

KINDS = ("clip", "text", "pattern")
BATCH = 8
"""Clips that the language model reads at once"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("query", nargs="?", metavar="QUERY", help="name of a clip, video file, action, sentence, or pattern of codes")
    parser.add_argument("--in", dest="events", type=Path, nargs="+", required=True, metavar="EVENTS", help="event cache to search")
    parser.add_argument("--as", dest="kind", choices=KINDS, help="what QUERY is (default: as it looks)")
    parser.add_argument("--model", type=Path, help="bundle, or run folder of stage 2, for video files and sentences")
    parser.add_argument("--llava", help="folder of the model's base LLaVA, if it has moved since training")
    parser.add_argument("--device", default="auto", help="where the model computes: cpu, cuda, … (default: cuda if available)")
    parser.add_argument("--top", type=int, default=10, help="number of clips to show (default: %(default)s)")
    parser.add_argument("--other-people", action="store_true", help="for a clip of the cache: leave out the clips of the same person")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--evaluate", type=Path, nargs="+", metavar="CSV", help="predictions_test.csv of the classifier, one for each --in")
    parser.add_argument("--output", type=Path, metavar="JSON", help="file for the figures of --evaluate")


def run(args: argparse.Namespace) -> int:
    """Search and print."""
    from vtlvlm.errors import UsageError

    if args.top < 1:
        raise UsageError(f"--top {args.top}: at least 1")
    if args.evaluate is not None:
        return _evaluate(args)
    if args.output is not None:
        raise UsageError("--output goes with --evaluate; --json prints what a search finds")
    if args.query is None or not args.query.strip():
        raise UsageError("nothing to search for: give a clip, a text or a pattern")
    if len(args.events) > 1:
        raise UsageError(f"--in names {len(args.events)} caches; a search reads one")
    if args.model is not None and not args.model.exists():
        raise UsageError(f"{args.model}: no such model; name the bundle or run that made the cache")

    from vtlvlm.retrieval import EventSearch

    search = EventSearch.open(args.events[0])
    kind = _kind(args, search)
    if args.other_people and (kind != "clip" or args.query not in search):
        raise UsageError("--other-people goes with a clip of the cache, whose person it leaves out")
    found, kind = _found(args, search, kind)
    _print(args, search, kind, found)
    return 0


def _kind(args: argparse.Namespace, search: EventSearch) -> str:
    """Clip, text or pattern."""
    if args.kind is not None:
        return str(args.kind)
    if args.query in search or Path(args.query).is_file():
        return "clip"
    return "pattern" if args.query.strip()[0].isdecimal() and not search.is_action(args.query) else "text"


def _found(args: argparse.Namespace, search: EventSearch, kind: str) -> tuple[list[Hit], str]:
    """The hits, and what the query was: clip, action, sentence or pattern."""
    if kind == "pattern":
        return search.pattern(args.query, args.top), kind
    if kind == "text":
        if args.model is None:
            return search.action(args.query, args.top), "action"
        return search.sentence(_likelihoods(args, search), args.top), "sentence"
    if args.query in search or not Path(args.query).is_file():
        return search.like(args.query, args.top, args.other_people), kind
    return search.like_sentence(_sentence_of_file(args, search), args.top), kind


def _model(args: argparse.Namespace, search: EventSearch) -> Any:
    """The model that made the cache.

    Raises:
        UsageError: It is of another kind, or has other codes.
    """
    import numpy as np

    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.recognizer import ActionRecognizer

    model = ActionRecognizer.from_checkpoint(args.model, device=args.device, **({"llava": args.llava} if args.llava else {}))
    if not isinstance(model, ActionRecognizer):
        raise UsageError(f"{args.model}: makes no event sentences; name the bundle or run that made the cache")
    table = model.vtem.quantizer.table()
    if table is None or not np.array_equal(table.detach().cpu().float().numpy(), search.gallery.table):
        raise UsageError(f"{args.model}: its codes are not those of {args.events[0]}; name the bundle or run that made the cache")
    return model


def _sentence_of_file(args: argparse.Namespace, search: EventSearch) -> Any:
    """The event sentence (W, S) of a video file."""
    import torch

    from vtlvlm.data.video import decode_sampled
    from vtlvlm.errors import UsageError

    if args.model is None:
        raise UsageError(f"{args.query}: a video needs --model, the bundle or run that made {args.events[0]}")
    model = _model(args, search)
    clip = decode_sampled(Path(args.query), model.sampling)
    with torch.inference_mode():
        events = model.vtem(clip.frames[None].to(model.device), clip.times[None].to(model.device))
    return events.ids[0].cpu().numpy().reshape(events.spans.shape[1], -1)


def _likelihoods(args: argparse.Namespace, search: EventSearch) -> Any:
    """Codes of all clips -> log-likelihoods of the sentence after each."""
    import torch
    from tqdm import tqdm

    from vtlvlm.lvlm.sentences import SentenceScorer

    model = _model(args, search)
    scorer = SentenceScorer(model.reasoner, [args.query])
    table = torch.from_numpy(search.gallery.table)

    def read(ids: Any) -> Any:
        flat = torch.from_numpy(ids.reshape(len(ids), -1).astype("int64"))
        bar = tqdm(flat.split(BATCH), desc="reading", unit=f"x{BATCH} clips", disable=None, leave=False)
        return torch.cat([scorer(table[part])[:, 0].cpu() for part in bar]).numpy()

    return read


TITLES = {
    "clip": "like {0}",
    "action": "with the highest probability of {0}, by their codes",
    "sentence": "that most raise the likelihood of {0!r}",
    "pattern": "with {0}",
}
SCORES = {"clip": "alike", "action": "probability", "sentence": "nats", "pattern": "times"}


def _print(args: argparse.Namespace, search: EventSearch, kind: str, hits: list[Hit]) -> None:
    from dataclasses import asdict

    from vtlvlm.commands.classify import json_line
    from vtlvlm.report.tables import Table, as_text
    from vtlvlm.system.text import shown

    if args.json:
        listed = []
        for rank, hit in enumerate(hits, 1):
            spans = [[round(second, 3) for second in span] for span in hit.times]
            listed.append({"rank": rank, **asdict(hit), "score": round(hit.score, 6), "times": spans})
        print(json_line({"query": args.query, "kind": kind, "clips": len(search), "unlearned": search.gallery.unlearned, "hits": listed}))
        return
    print(f"{len(hits)} of {len(search):,} clips {TITLES[kind].format(shown(args.query, 100))}")
    if kind == "clip" and search.index.reader is None:
        print(f"vtlvlm: actions are not told from the codes: {shown(search.gallery.unlearned, 300)}", file=sys.stderr)
    if not hits:
        return
    columns = ["", "clip", SCORES[kind], "action", "person", *(["seconds"] if kind == "pattern" else [])]
    rows: list[list[str]] = []
    for rank, hit in enumerate(hits, 1):
        times = ", ".join(f"{start:.2f}–{end:.2f}" for start, end in hit.times) + (", …" if hit.score > len(hit.times) else "")
        cells = [str(rank), hit.clip, _score(kind, hit.score), "" if hit.action is None else hit.action, hit.person]
        rows.append([*cells, times] if kind == "pattern" else cells)
    print(as_text(Table(columns, rows)))


def _score(kind: str, value: float) -> str:
    return {"clip": f"{value:.3f}", "action": f"{value:.1%}", "sentence": f"{value:+.2f}", "pattern": f"{value:.0f}"}[kind]


def _evaluate(args: argparse.Namespace) -> int:
    from vtlvlm.errors import UsageError
    from vtlvlm.report.provenance import environment
    from vtlvlm.report.tables import as_text
    from vtlvlm.retrieval.evaluation import evaluate
    from vtlvlm.system.files import write_json
    from vtlvlm.system.places import require_apart, require_json_place

    if args.query is not None:
        raise UsageError("--evaluate searches for every test clip; leave QUERY out")
    if len(args.events) != len(args.evaluate):
        raise UsageError(f"--in names {len(args.events)} caches and --evaluate {len(args.evaluate)} tables; give one table for each cache")
    if args.output is not None:
        require_json_place(args.output)
        require_apart(args.output, [*args.events, *args.evaluate], "the file of figures")
    found = evaluate(list(zip(args.events, args.evaluate, strict=True)))
    facts = found.facts
    print(f"{facts['queries']} test clips of {facts['people']} people, {facts['seeds']} seed(s); relevant: the same action by other people")
    print(as_text(found.table))
    print(as_text(found.differences))
    if args.output is not None:
        write_json(args.output, {**environment(None), "events": [str(path) for path in args.events], **facts})
        print(f"{args.output} written")
    return 0
