"""Downloads the pretrained weights that a configuration names, so that a machine without network can run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtlvlm.commands.trainer import untrained
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import Llava, load_config, load_tokenizer
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.system.streams import gist
from vtlvlm.vtem.extractors import Backbone

LLAVA_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors")


def main(arguments: Sequence[str]) -> int:
    """Download the extractor of stage 1 or of a linear head, or the LLaVA of stage 2, and say where they are.

    What is there already is kept. With ``HF_HUB_OFFLINE=1``, downloads nothing from the hub, and so checks that all is there.
    """
    model, _ = untrained("fetch", arguments)
    if (extractor := getattr(model, "extractor", None)) is not None:
        print(fetch_extractor(extractor))
    elif isinstance(model, PromptTuningModule):
        print(fetch_llava(model.reasoner.llava))
    else:
        print("nothing to fetch: this network starts from a file, or from random numbers")
    return 0


def fetch_extractor(extractor: Any) -> str:
    """Load an extractor's weights, which downloads them once.

    Returns:
        A line that says where they are.
    """
    import huggingface_hub.constants
    import torch

    extractor.load_weights()
    if not isinstance(extractor, Backbone):
        return f"{type(extractor).__name__}: its weights are here"
    if extractor.weights is not None:
        return f"{extractor.model}: its weights are {extractor.weights}, on this machine"
    hub = f"{huggingface_hub.constants.HF_HUB_CACHE} (HF_HOME)"
    places = {"VideoExtractor": f"{Path(torch.hub.get_dir()) / 'checkpoints'} (TORCH_HOME)", "TimmExtractor": hub}
    return f"{extractor.model}: its weights are in {places.get(type(extractor).__name__, hub)}"


def fetch_llava(llava: Llava) -> str:
    """Download a LLaVA's config, tokenizer and weights, and read the first two.

    Returns:
        A line that says where they are.

    Raises:
        UsageError: The hub cannot be reached, or has no such LLaVA.
    """
    place = llava.path
    if not Path(place).is_dir():
        from huggingface_hub import snapshot_download

        try:
            place = snapshot_download(llava.path, revision=llava.revision, allow_patterns=list(LLAVA_FILES))
        except Exception as error:  # hub and network raise different classes
            raise UsageError(f"{llava.path}: cannot be downloaded from the Hugging Face hub ({gist(error, 200)})") from error
    load_config(place)
    load_tokenizer(place)
    return f"{llava.path}: its weights are in {place}{'' if place == llava.path else ' (HF_HOME)'}"
