"""Keeps the results of linear probes beside their feature cache, so that ``probe`` and every ``test`` on it fit them once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray

from vtlvlm import __version__
from vtlvlm.data.cache import FeatureCache
from vtlvlm.probes.linear import ProbeResult
from vtlvlm.system.files import write_json

LARGEST = 64 << 20
"""Bytes of a file of results, at most"""


class KeptProbes:
    """The results for one set of features, clips, labels and groups. Other clips, videos, settings or versions have a file of another name.

    Args:
        cache: Of the features; the file ``probes-KEY.json`` lies in its folder.
        names: (N,) clip names.
        labels: (N,) in [0, A).
        groups: (N,) the person of each clip.
        train: Row numbers of the training clips.
        test: Row numbers of the test clips.
        num_classes: A.
        seed: Of the folds.
    """

    def __init__(
        self,
        cache: FeatureCache,
        names: NDArray[Any],
        labels: NDArray[np.int64],
        groups: NDArray[Any],
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        *,
        num_classes: int,
        seed: int,
    ) -> None:
        clips = [[str(name), int(label), str(group)] for name, label, group in zip(names, labels, groups, strict=True)]
        made: dict[str, Any] = {"features": cache.hash, "train": [clips[row] for row in train], "test": [clips[row] for row in test]}
        made["videos"] = [str(cache.identities[row]) for row in cache.rows(names, 0)]  # a changed video has other features
        made |= {"num_classes": num_classes, "seed": seed, "versions": [__version__, sklearn.__version__, np.__version__]}
        key = blake2b(json.dumps(made, sort_keys=True).encode(), digest_size=10).hexdigest()
        self.path: Path = cache.folder / f"probes-{key}.json"
        self._counts, self._classes = (len(train), len(test)), num_classes

    def read(self) -> dict[str, ProbeResult]:
        """The kept results by name; empty if there is no file, or a damaged one."""
        try:
            if self.path.stat().st_size > LARGEST:
                return {}
            held = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(name): self._result(values) for name, values in dict(held).items()}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}

    def _result(self, values: dict[str, Any]) -> ProbeResult:
        guesses = tuple(values["guesses"])
        if {type(guess) for guess in guesses} != {int} or not 0 <= min(guesses) <= max(guesses) < self._classes:
            raise ValueError("guesses")
        found = ProbeResult(**{**values, "guesses": guesses})
        shares = found.top1, found.top5, found.mean_class, found.chosen_accuracy
        if not all(isinstance(share, float) and 0 <= share <= 1 for share in shares) or type(found.dims) is not int:
            raise ValueError("numbers")
        if (found.num_train, found.num_test) != self._counts or len(guesses) != self._counts[1]:
            raise ValueError("counts")
        return found

    def add(self, found: Mapping[str, ProbeResult]) -> None:
        """Keep further results. If the folder cannot be written, they are not kept."""
        everything = {**self.read(), **found}
        with suppress(OSError):
            write_json(self.path, {name: asdict(result) for name, result in everything.items()})
