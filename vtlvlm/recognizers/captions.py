"""Captions of clips by a model that learned them, and how well they agree with true ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.data.captions import Captions, read_captions
from vtlvlm.data.carried import carried_index
from vtlvlm.data.video import decode_sampled
from vtlvlm.errors import DataError, UsageError
from vtlvlm.lvlm.captions import Written, write_captions
from vtlvlm.metrics.captions import Words, bleu, cider, rouge_l, rouge_of, words
from vtlvlm.metrics.paired import paired_scores
from vtlvlm.recognizers.bundles import BUNDLE, read_description
from vtlvlm.recognizers.export import require_stage2, stage2_checkpoint
from vtlvlm.recognizers.recognizer import ActionRecognizer, require_kind
from vtlvlm.report.predictions import Predictions
from vtlvlm.report.tables import Table
from vtlvlm.retrieval.gallery import Gallery, gallery_of
from vtlvlm.stages.checkpoints import read_record
from vtlvlm.system.text import shown

BATCH = 16
"""Clips that the language model reads at once"""
OURS = "captions of the model"
NAME = "name of the recognised action"
FREQUENT = "most frequent training caption of the recognised action"


def require_learned(model: Path) -> None:
    """Refuse a model that did not learn captions. Loads no weights.

    Raises:
        UsageError: It learned to name actions, or is no model of event sentences.
    """
    if (model / BUNDLE).is_file():
        origin = read_description(model).get("origin")
        made = origin.get("reasoning") if isinstance(origin, dict) else None
    else:
        record = read_record(checkpoint := stage2_checkpoint(model))
        require_stage2(record, checkpoint)
        made = record["provenance"]
    if not isinstance(made, dict) or not isinstance(made.get("captions"), str):
        raise UsageError(f"{model}: learned no captions; train stage 2 with --data.source.captions FILE.csv and objective generative")


def caption_video(model: ActionRecognizer, file: Path) -> Written:
    """The caption of a video.

    Raises:
        DataError: The file cannot be read.
    """
    require_kind(file, None)
    clip = decode_sampled(file, model.sampling)
    with torch.inference_mode():
        events = model.vtem(clip.frames[None].to(model.device), clip.times[None].to(model.device))
    return write_captions(model.reasoner, events.vectors)[0]


def caption_sentences(model: ActionRecognizer, gallery: Gallery, rows: NDArray[np.int64], progress: Any = iter) -> list[Written]:
    """The captions of event sentences of a cache.

    Args:
        model: That made the cache.
        gallery: The cache's clips.
        rows: (n,) clips.
        progress: Wraps the batches, for a bar.

    Raises:
        UsageError: The model has other codes.
    """
    table = model.vtem.quantizer.table()
    if table is None or not np.array_equal(table.detach().cpu().float().numpy(), gallery.table):
        raise UsageError("the model's codes are not those of the event cache; name the event cache that it was trained on")
    vectors = torch.from_numpy(gallery.table)
    found: list[Written] = []
    for part in progress(np.array_split(rows, max(1, -(-len(rows) // BATCH)))):
        ids = torch.from_numpy(gallery.ids[part].reshape(len(part), -1).astype(np.int64))
        found += write_captions(model.reasoner, vectors[ids])
    return found


class Evaluation(NamedTuple):
    """How well captions agree with true ones."""

    table: Table
    differences: Table
    facts: dict[str, Any]


def evaluate(
    events: Path, truth: Path, predictions: Predictions, write: Callable[[Gallery, NDArray[np.int64]], Sequence[Written]]
) -> Evaluation:
    """Measure captions of the test clips of an event cache, beside captions that say nothing but the recognised action.

    An action that a caption names is that of the nearest training caption (by ROUGE-L).

    Args:
        events: The cache.
        truth: Table of true captions, of test and training clips.
        predictions: A classifier's, of the test clips.
        write: Writes the captions of clips.

    Raises:
        DataError: The cache has no test clips, a clip has no caption, or the predictions are of other clips or classes.
    """
    gallery, index = gallery_of(events), carried_index(events)
    if not len(gallery.testing) or not len(gallery.learning):
        raise DataError(f"{events}: has no test clips and training clips that are known as such: {gallery.unlearned or 'see its protocol'}")
    place = {str(name): row for row, name in enumerate(index.name)}
    tested, learned = (np.array([place[str(name)] for name in gallery.names[rows]]) for rows in (gallery.testing, gallery.learning))
    table = read_captions(truth, index, np.concatenate([tested, learned]))
    at = {clip: row for row, clip in enumerate(predictions.clips.tolist())}
    if lacking := [name for name in gallery.names[gallery.testing].tolist() if name not in at]:
        raise DataError(f"the predictions lack {len(lacking)} of {len(tested)} test clips, the first being {shown(lacking[0])}")
    recognised = [predictions.classes[predictions.recognised[at[str(name)]]] for name in gallery.names[gallery.testing]]
    known = _by_action(table, learned, [gallery.classes[label] for label in gallery.labels[gallery.learning]])
    if unknown := sorted(set(recognised) - set(known)):
        raise DataError(
            f"the predictions name {shown(unknown[0], 80)!r}, of which the cache has no training clip; give those of its classifier"
        )
    written = write(gallery, gallery.testing)
    said = {
        OURS: [one.text for one in written],
        FREQUENT: [known[action].most_common(1)[0][0] for action in recognised],
        NAME: recognised,
    }
    actions = [gallery.classes[label] for label in gallery.labels[gallery.testing]]
    return _measured(said, [table.clip(row) for row in tested], recognised, actions, known, gallery, written)


def _by_action(table: Captions, rows: Iterable[int], actions: Sequence[str]) -> dict[str, Counter[str]]:
    """How often each training caption occurs, for each action; the first of equally frequent ones in the alphabet comes first."""
    found: dict[str, Counter[str]] = {}
    for row, action in zip(rows, actions, strict=True):
        found.setdefault(action, Counter()).update(table.clip(row))
    return {action: Counter(dict(sorted(counts.items()))) for action, counts in found.items()}


def nearest_action(caption: str, known: Sequence[tuple[Words, str]]) -> str:
    """The action of the training caption that is nearest by ROUGE-L; the first of equally near ones."""
    said = words(caption)
    return max(known, key=lambda one: rouge_of(said, [one[0]]))[1]


def _measured(
    said: dict[str, list[str]],
    references: list[list[str]],
    recognised: list[str],
    actions: list[str],
    known: dict[str, Counter[str]],
    gallery: Gallery,
    written: Sequence[Written],
) -> Evaluation:
    flat = [(words(text), action) for action, counts in sorted(known.items()) for text in counts]
    flat += [(words(action), action) for action in sorted(known)]
    ciders, rouges = ({name: np.array([measure(texts, references)]) for name, texts in said.items()} for measure in (cider, rouge_l))
    rows, methods = [], {}
    for name, texts in said.items():
        meant = [nearest_action(text, flat) for text in texts]
        blues = bleu(texts, references)
        figures = {
            "CIDEr": float(ciders[name].mean()),
            "BLEU-1": blues[0],
            "BLEU-4": blues[3],
            "ROUGE-L": float(rouges[name].mean()),
            "names another action than the classifier": float(np.mean([m != r for m, r in zip(meant, recognised, strict=True)])),
            "names the true action": float(np.mean([m == a for m, a in zip(meant, actions, strict=True)])),
        }
        methods[name] = figures
        rows.append([name, *(f"{value:.3f}" for value in figures.values())])
    gains = [
        [OURS, other, str(paired_scores(ciders[OURS], ciders[other])), str(paired_scores(rouges[OURS], rouges[other]))]
        for other in list(said)[1:]
    ]
    names = gallery.names[gallery.testing].tolist()
    facts = {
        "clips": len(references),
        "people": len(set(gallery.people[gallery.testing].tolist())),
        "methods": methods,
        "differences": [dict(zip(("ours", "theirs", "CIDEr", "ROUGE-L"), gain, strict=True)) for gain in gains],
        "captions": [
            {"clip": name, "caption": one.text, "log_probability": one.log_probability, "recognised": action, "truth": texts}
            for name, one, action, texts in zip(names, written, recognised, references, strict=True)
        ],
    }
    header = ["", *methods[OURS]]
    return Evaluation(Table(header, rows, frozenset({0})), Table(["", "minus", "CIDEr", "ROUGE-L"], gains), facts)
