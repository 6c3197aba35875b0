"""A linear probe as a recogniser: features of a video in, the most likely actions out, without a language model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from vtlvlm import __version__
from vtlvlm.data.cache import FeatureCache
from vtlvlm.data.cache_format import first_difference, made_of
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip
from vtlvlm.errors import UsageError
from vtlvlm.metrics.calibration import fit_temperature
from vtlvlm.probes.linear import ABSENT, VECTORS, FittedProbe, LinearProbe, clip_vectors
from vtlvlm.recognizers.bundles import BUNDLE, FORMAT, digest, load_into, new_folder, read_weights, require_described, require_shapes
from vtlvlm.recognizers.limits import require_modest, require_modest_features
from vtlvlm.recognizers.recognizer import Answer, VideoRecognizer
from vtlvlm.stages.compatibility import require_numbers
from vtlvlm.stages.parts import build_from, is_part, settings_of
from vtlvlm.system.files import appearing, write_json
from vtlvlm.system.saving import saving
from vtlvlm.system.text import shown
from vtlvlm.vtem.clip_extractor import ClipExtractor
from vtlvlm.vtem.extractors import FeatureExtractor

KIND = "probe"
EXTRACTOR_FILE, PROBE_FILE = "extractor.safetensors", "probe.safetensors"
SIZES = dict(zip(VECTORS, (1, 1, 2, 3, 6), strict=True))
"""Size of each kind of vector, in multiples of a feature step"""
LIBRARIES = ("timm", "torchvision", "transformers")
"""Entries of a fingerprint that hold library versions, which may have changed"""


class ProbeModel(NamedTuple):
    """Everything that a probe needs to recognise a clip."""

    extractor: FeatureExtractor
    kind: str
    """the vector of ``VECTORS`` that it reads"""
    probe: LinearProbe
    temperature: float


# -- making ----------------------------------------------------------------------------------------------------------------------------


def extractor_of(cache: FeatureCache, weights: str | None = None) -> FeatureExtractor:
    """The extractor that made a feature cache, with its weights.

    Args:
        cache: Holds the extractor's settings.
        weights: The extractor's weights, a file or ``package:NAME``; None for their recorded place.

    Raises:
        UsageError: The extractor is no part of vtlvlm, or would make other features now.
        DataError: The cache does not name its extractor.
    """
    made, noted = made_of(cache, "extractor", dict), cache.provenance.get("extractor_settings")
    settings = noted if noted is not None else _settings_of_fingerprint(made, cache.folder)
    return matching_extractor(settings, made, cache.folder, weights, "name its weights with --weights, or extract again")


def matching_extractor(settings: Any, made: dict[str, Any], source: Path, weights: str | None, remedy: str) -> FeatureExtractor:
    """An extractor with its weights, if they make the features that were made by it.

    Args:
        settings: The extractor's, from a file; can be anything.
        made: Fingerprint of the extractor that made the features. Versions of libraries may have changed since.
        source: Was made with the features, for the message.
        weights: The extractor's weights, a file or ``package:NAME``; None for their recorded place.
        remedy: What to do where they are others, for the message.

    Raises:
        UsageError: The extractor is no part of vtlvlm, its weights are not there, or it would make other features.
    """
    if is_part(settings):
        settings = {**settings, "init_args": {**settings["init_args"], **({} if weights is None else {"weights": weights})}}
    extractor = build_from(settings, FeatureExtractor, source)  # type: ignore[type-abstract]
    try:
        now = extractor.fingerprint()
    except UsageError as error:
        raise UsageError(f"{error}; {remedy}") from error
    one, two = (_without_versions(found) for found in (made, now))
    if difference := first_difference(one, two):
        name, old, new = difference
        raise UsageError(
            f"{source} was made by an extractor with {shown(name, 40)} = {shown(repr(old), 80)}, but now it would be "
            f"{shown(repr(new), 80)}: {remedy}"
        )
    return extractor


def _settings_of_fingerprint(made: dict[str, Any], source: Path) -> dict[str, Any]:
    """The extractor settings of an old cache that did not record them. The weights are the library's, unless given."""
    name = str(made.get("extractor"))
    if name not in ("TimmExtractor", "VideoExtractor"):
        raise UsageError(f"{source}: does not record its extractor's settings; run `vtlvlm extract` into this folder again to record them")
    known = {key: made[key] for key in ("model", "grid", "image_size") if key in made}
    chunk = {"chunk": int(text)} if (text := str(made.get("chunk", ""))).isdecimal() else {}
    return {"class_path": f"vtlvlm.vtem.extractors.{name}", "init_args": {**known, **chunk}}


def _without_versions(fingerprint: dict[str, Any]) -> dict[str, Any]:
    moved = ("model",) if fingerprint.get("extractor") == ClipExtractor.__name__ else ()  # the folder of a LLaVA
    return {key: value for key, value in fingerprint.items() if key not in LIBRARIES + moved}


def temperature_of(fitted: FittedProbe, labels: NDArray[np.int64]) -> float:
    """The temperature of a probe, from predictions for training clips by probes fitted without the clips' groups.

    Regularisation changes the spread of a probe's scores by orders of magnitude. Scores are therefore divided by their spread, so that the
    search is centred there and not at 1. Clips of a class that the other groups lack are left out.
    """
    known = fitted.held_out[np.arange(len(labels)), labels] > 0
    if not known.any():
        return 1.0
    probs = fitted.held_out[known]
    scores = np.where(probs > 0, np.log(np.maximum(probs, 1e-300)), ABSENT)
    apart = float(np.median(np.std(scores, axis=1, where=probs > 0)))
    unit = apart if apart > 0 else 1.0
    return unit * fit_temperature(torch.from_numpy(scores / unit), torch.from_numpy(labels[known]))


def export_probe(output: str | Path, model: ProbeModel, classes: list[str], sampling: dict[str, Any], origin: dict[str, Any]) -> Path:
    """Bundle a probe for ``classify``: ``bundle.json``, ``extractor.safetensors``, ``probe.safetensors``.

    Args:
        output: Folder to create; it appears whole or not at all.
        model: Extractor, with its weights, and probe.
        classes: Category names, in label order.
        sampling: Settings of the frame sampling, as class_path and init_args.
        origin: Origin of the probe, in plain values.

    Raises:
        UsageError: The folder exists.
    """
    folder, extractor = new_folder(output), settings_of(model.extractor)
    extractor["init_args"] |= {name: value for name, value in (("weights", None), ("compiled", False)) if name in extractor["init_args"]}
    numbers = {**vars(model.probe), "temperature": np.asarray(model.temperature)}
    weights = {
        EXTRACTOR_FILE: {name: tensor.contiguous() for name, tensor in model.extractor.state_dict().items()},
        PROBE_FILE: {name: torch.from_numpy(np.array(values, dtype=np.float32)) for name, values in numbers.items()},
    }
    described: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "version": __version__,
        "classes": classes,
        "sampling": sampling,
        "extractor": extractor,
        "probe": model.kind,
        "origin": {**origin, "classes": classes, "extractor": model.extractor.fingerprint()},
    }
    with saving(folder), appearing(folder) as partial:
        for name, state in weights.items():
            save_file(state, partial / name)
        described["sha256"] = {name: digest(partial / name) for name in weights}
        write_json(partial / BUNDLE, described)
    return folder


# -- reading ---------------------------------------------------------------------------------------------------------------------------


class ProbeRecognizer(VideoRecognizer):
    """A linear probe for single files. It makes no event sentence: ``events`` of a recognition is None.

    Args:
        model: Extractor and probe.
        classes: Category names, in label order.
        sampling: Frame sampling for a file.
        device: Device of the extractor; ``auto`` is the first GPU, or else the CPU.
    """

    def __init__(self, model: ProbeModel, classes: list[str], sampling: FrameSampling, device: str = "auto") -> None:
        super().__init__(classes, sampling, model.extractor, device)
        self.model = model._replace(extractor=model.extractor.to(self.device).eval())

    @classmethod
    def from_bundle(cls, folder: Path, described: dict[str, Any], device: str) -> ProbeRecognizer:
        """Load a probe from a bundle.

        Args:
            folder: The bundle.
            described: Its description. Only its format has been checked.
            device: Device of the extractor.

        Raises:
            UsageError: The bundle is damaged or incomplete.
        """
        path = folder / BUNDLE
        classes, digests = require_described(described, [EXTRACTOR_FILE, PROBE_FILE], path), described["sha256"]
        kind = described.get("probe")
        if not isinstance(kind, str) or kind not in SIZES:
            raise UsageError(
                f"{path}: a probe on {shown(repr(kind), 60)}, unknown here ({', '.join(VECTORS)}); use the version that wrote the file"
            )
        extractor = build_from(described.get("extractor"), FeatureExtractor, folder)  # type: ignore[type-abstract]
        sampling = build_from(described.get("sampling"), FrameSampling, folder)
        require_modest(sampling, extractor)
        first, second = (read_weights(folder, name, digests) for name in (EXTRACTOR_FILE, PROBE_FILE))
        with torch.device("meta"):  # takes no memory before all shapes are checked
            plan = copy.deepcopy(extractor)
            plan.build()
            require_modest_features(sampling, plan, path)
            width = plan.cells * plan.dim * SIZES[kind]
        require_shapes(first, plan.state_dict(), folder / EXTRACTOR_FILE)
        numbers = {"mean": (width,), "scale": (width,), "weight": (len(classes), width), "bias": (len(classes),), "temperature": ()}
        wanted = {name: torch.empty(shape, device="meta") for name, shape in numbers.items()}
        require_shapes(second, wanted, folder / PROBE_FILE)
        require_numbers(second, wanted, folder / PROBE_FILE)
        if not bool((second["scale"] > 0).all()):
            raise UsageError(f"{folder / PROBE_FILE}: its scale is not above 0; get the file again, or make it again")
        extractor.build()
        load_into(extractor, first, folder / EXTRACTOR_FILE)
        held = {name: second[name].double().numpy() for name in numbers}
        temperature = float(held.pop("temperature"))
        return cls(ProbeModel(extractor, kind, LinearProbe(**held), temperature), classes, sampling, device)

    def recognise(self, clip: Clip) -> Answer:
        """The probabilities of a clip, without events."""
        features = self.model.extractor(clip.frames[None].to(self.device)).cpu().half().numpy()  # float16, as in a feature cache
        with np.errstate(all="ignore"):  # the caller refuses non-finite results
            probs = self.model.probe.probabilities(clip_vectors(features)[self.model.kind], self.model.temperature)
        return Answer(torch.from_numpy(probs[0]))
