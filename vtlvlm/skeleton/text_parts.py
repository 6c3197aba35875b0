"""GAP (arXiv 2208.05318): training also draws the features of the body and of its parts to texts about the action."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import Head, Scores, TapShape, classifier, pooled
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.skeleton.text_table import PARTS, read_table
from vtlvlm.skeleton.transforms import constant
from vtlvlm.vtem.group import gather_clips, group_size

SHARPNESS = 10.0
"""Times this, the table of equal actions becomes the target's logits"""


class TextPartsHead(Head):
    """The mean of the last block's features and a linear layer; training adds GAP's contrast with texts.

    The features of the whole body, and of head, arms, hips and legs, are each mapped to the width of the texts. The loss makes a clip most
    similar to the texts of its own action, and these texts to it, among the clips of the batch. The batch is that of all processes, which
    must have equally many clips. Where an optimiser step takes several smaller batches, each of them is a batch here.

    Texts are embedded once, by ``vtlvlm texts``, and kept in checkpoints. In the official code, CLIP's text encoder is trained too, and the
    text of the whole body is a random synonym of the action's name.

    Args:
        texts: The file of embedded texts. It is read when the weights are made. A trained head can be loaded without it.
        text_width: E, width of the embeddings: 576 for SmolLM2-135M, 512 for CLIP ViT-B/32.
        weight: Of the mean of the five contrasts.
        parts: Joints of head, arms, hips and legs; None for the layout's. For bones, GAP leaves out those that a part shares with others.

    Raises:
        UsageError: A setting is out of range.
    """

    files = ("texts",)

    def __init__(
        self, texts: str | None = None, text_width: int = 576, weight: float = 0.8, parts: Sequence[Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        if text_width < 1:
            raise UsageError(f"head.text_width={text_width}: use at least 1")
        if parts is not None and (len(parts) != len(PARTS) or not all(parts)):
            raise UsageError(f"head.parts has {len(parts)} lists of joints: give one for each of {', '.join(PARTS)}")
        self.texts = texts
        self.text_width = text_width
        self.weight = weight
        self.parts = parts
        self.fc: nn.Linear | None = None
        self.contrast: PartContrast | None = None

    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout | None) -> None:
        """Makes the weights and reads the texts. Idempotent.

        Raises:
            UsageError: The texts have another width or lack an action, a part names a joint that does not exist, or there are no joints.
            DataError: The file of texts is damaged.
        """
        if self.fc is not None:
            return
        if layout is None:
            raise UsageError("TextPartsHead reads joints: choose LinearHead for videos")
        joints = [list(part) for part in (self.parts or [layout.parts[name] for name in PARTS])]
        if not all(0 <= joint < layout.num_joints for part in joints for joint in part):
            raise UsageError(f"head.parts: the layout {layout.name} has the joints 0 to {layout.num_joints - 1}")
        table = torch.full((len(classes), 1 + len(PARTS), self.text_width), torch.nan)
        if self.texts is not None and Path(self.texts).is_file():
            found = read_table(Path(self.texts), classes)
            if found.shape[2] != self.text_width:
                raise UsageError(
                    f"head.text_width={self.text_width}: the embeddings of {self.texts} have the width {found.shape[2]}; set it"
                )
            table = found
        self.contrast = PartContrast(shapes[-1].channels, joints, table)
        self.fc = classifier(shapes[-1].channels, len(classes))

    def only_in_training(self) -> list[nn.Module]:
        return [] if self.contrast is None else [self.contrast]

    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        """Scores a batch. The loss ``texts`` is computed in training only.

        Raises:
            UsageError: There are no texts to train with.
        """
        assert self.fc is not None, "build() first"
        logits = self.fc(pooled(taps[-1]))
        if labels is None or not self.training:
            return Scores(logits, {})
        assert self.contrast is not None, "only for inference"
        if not self.contrast.has_texts():
            if self.texts is None:
                raise UsageError("head.texts names no table of texts; make one with `vtlvlm texts texts.safetensors` and name it")
            raise UsageError(f"{self.texts}: no such table of texts; make it with `vtlvlm texts {self.texts}`")
        with torch.autocast(logits.device.type, enabled=False):
            return Scores(logits, {"texts": self.weight * self.contrast(taps[-1].float(), labels)})


class PartContrast(nn.Module):
    """The contrasts of the whole body and of its parts.

    Args:
        width: C.
        joints: Those of each part.
        texts: (A, 5, E), the embeddings. An action without a text has NaN.
    """

    texts: Tensor
    """(A, 5, E); kept in checkpoints"""

    def __init__(self, width: int, joints: Sequence[Sequence[int]], texts: Tensor) -> None:
        super().__init__()
        self.joints = [tuple(part) for part in joints]
        self.maps = nn.ModuleList([nn.Linear(width, texts.shape[2]) for _ in range(texts.shape[1])])
        self.scales = nn.Parameter(torch.full((texts.shape[1],), math.log(1 / 0.07)))  # not of an exponential, as in the official code
        self.register_buffer("texts", texts)
        self._complete = False

    def has_texts(self) -> bool:
        """Whether there are embeddings of all texts. They are looked at until there are, since a checkpoint may bring them."""
        self._complete = self._complete or bool(self.texts.isfinite().all())
        return self._complete

    def forward(self, tap: Tensor, labels: Tensor) -> Tensor:
        """Features (N, M, C, T, V) and labels (N,) -> the mean of the five contrasts."""
        joints = tap.mean(dim=3).mean(dim=1)  # (N, C, V)
        pools = [joints, *(joints.index_select(2, constant(part, joints.device)) for part in self.joints)]
        features = torch.stack([layer(pool.mean(dim=2)) for layer, pool in zip(self.maps, pools, strict=True)])  # (5, N, E)
        return contrasts(features, self.texts[labels].transpose(0, 1), labels, self.scales).mean()


def contrasts(features: Tensor, texts: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
    """GAP's contrast of P kinds of features with as many kinds of texts.

    Similarities are cosines times a scale. A clip's similarities with the texts of all clips shall be distributed like
    softmax(10 [same action]), and a text's with all clips too: the loss is the Kullback-Leibler divergence, mean over clips and both ways.

    Args:
        features: (P, N, E).
        texts: (P, N, E), those of each clip's action.
        labels: (N,) int64.
        scales: (P,).

    Returns:
        (P,), the mean over this process's clips; all others come from all processes.
    """
    features, texts = F.normalize(features, dim=2), F.normalize(texts, dim=2)
    every, every_text, every_label = features, texts, labels
    if group_size() > 1:
        every, every_text = (gather_clips(own.transpose(0, 1)).transpose(0, 1) for own in (features, texts))
        every_label = gather_clips(labels)
    target = (SHARPNESS * (labels[:, None] == every_label)).softmax(dim=1).expand(len(scales), -1, -1)
    scale = scales[:, None, None]
    ways = [scale * features @ every_text.mT, scale * texts @ every.mT]  # (P, N, all clips)
    losses = [F.kl_div(way.log_softmax(dim=2), target, reduction="none").sum(dim=2).mean(dim=1) for way in ways]
    return (losses[0] + losses[1]) / 2
