"""Values of stage 2 that are fitted to training clips before the first step: the projector's start, and the prior of ``pmi``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from vtlvlm.batches import HiddenBatch
from vtlvlm.lvlm.projector_init import EventMoments, fit_votes

START_CLIPS = 4096
"""Number of training clips and views that the projector's closed-form start reads"""
PRIOR_CLIPS = 64
"""Number of training clips and views that the prior is measured on"""
PRIOR_BATCH = 8


def training_clips(module: Any, clips: int) -> Iterator[tuple[Any, int]]:
    """Batches, and the number of clips to take from each, until this rank has its part of that many clips and views."""
    left = -(-clips // module.trainer.world_size)
    for batch in module.training_batches():
        yield batch, min(left, len(batch.labels))
        left -= len(batch.labels)
        if left <= 0:
            return


def align_projector(module: Any) -> None:
    """Fit the projector to the training events of all ranks.

    Args:
        module: The PromptTuningModule, built.
    """
    moments, reasoner = EventMoments(module.provenance()["event_dim"]).to(module.device), module.reasoner
    sentences = []
    for batch, count in training_clips(module, START_CLIPS):
        vectors = module.vectors(batch)[:count]
        moments.add(reasoner.mix_sentence_mean(vectors))
        sentences.append((vectors.mean(1), batch.labels[:count], module.data.groups(batch.clips[:count])))
    means, labels, groups = map(torch.cat, zip(*sentences, strict=True))
    if module.trainer.world_size > 1:
        for buffer in moments.buffers():
            torch.distributed.all_reduce(buffer)
    means, labels, groups = map(module.of_all_ranks, (means, labels, groups))
    votes = fit_votes(means, labels, groups, len(module.classes))
    rank_zero_info(
        f"the projector starts as a linear probe on {len(means):,} training sentences; its accuracy on held-out training groups is "
        f"{votes.held_out:.3f} (stage 1 was trained on them, so expect less)"
    )
    reasoner.align(votes, moments)
    if module.trainer.world_size > 1:
        for parameter in reasoner.projector.parameters():
            torch.distributed.broadcast(parameter.detach(), src=0)


@torch.no_grad()
def measure_prior(module: Any) -> Tensor:
    """Each label's mean log-likelihood (A,) over training clips of all ranks.

    Args:
        module: The PromptTuningModule, built.
    """
    clips = list(training_clips(module, PRIOR_CLIPS))
    module.reasoner.eval()
    if isinstance(clips[0][0], HiddenBatch):
        parts = [module.scores(batch).log_likelihood[:count] for batch, count in clips]
    else:
        vectors = torch.cat([module.vectors(batch)[:count] for batch, count in clips])
        parts = [module.reasoner(part).log_likelihood for part in vectors.split(PRIOR_BATCH)]
    module.reasoner.train()
    found: Tensor = module.of_all_ranks(torch.cat(parts)).double().mean(0).float()
    return found
