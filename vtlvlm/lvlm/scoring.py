"""Label scores in one forward (eq. 6): the categories' token sequences as one tree, and the context and that tree in one sequence.

The tree is laid out in tensors, so that no score needs a loop over labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.prefix import ContextStates, has_kernel

Form = Literal["packed", "two_pass", "batched"]
MASKED = ("sdpa", "eager")
"""Attention kernels of transformers that take the tree's mask"""
WORDS = 1024
"""Words of the vocabulary whose logits are held at a time: they stay in the processor's cache, and never are there all of them"""


# -- the label tree ------------------------------------------------------------------------------------------------------------------------

MOST_NODES = 32_768
"""Tokens of a tree that is read in one pass; memory grows with their square"""


class LabelTrie(nn.Module):
    """A prefix tree of label token sequences.

    Nodes are the tokens that have to be *read* for some label's next token to be predicted; a label's last token (its end token)
    is only ever predicted and has no node. Parents precede their children. The tensors are non-persistent buffers: they follow
    the module to its device and stay out of checkpoints.

    Args:
        labels: One token sequence a category, each closed by an end token, so that no label is a proper prefix of another.
        max_positions: Cut the tree into :attr:`parts` of at most so many nodes; None for one.
        chosen: Only lay out these of the labels; None for all.

    Raises:
        UsageError: A label without tokens, two labels with the same ones, or ``max_positions`` below 1.
    """

    tokens: Tensor
    """(N,) int64, the token each node feeds"""
    depths: Tensor
    """(N,) int64, tokens above the node: its distance from the end of the context"""
    ancestors: Tensor
    """(N, N) bool, ``ancestors[i, j]``: node i may attend to node j (itself and those above it); (0, 0) where the parts have it"""
    rows: Tensor
    """(F,) int64, the label each predicted token belongs to; F is the number of label tokens"""
    slots: Tensor
    """(F,) int64 in [0, N], where the token is predicted: 0 is the end of the context, 1 + i is node i"""
    targets: Tensor
    """(F,) int64, the predicted token"""
    lengths: Tensor
    """(A,) int64, tokens of each label, its end token included; 0 if it is not laid out"""

    def __init__(self, labels: Sequence[Sequence[int]], max_positions: int | None = None, chosen: Sequence[int] | None = None) -> None:
        super().__init__()
        nodes: dict[tuple[int, ...], int] = {}
        parents: list[int] = []
        rows, slots, targets, lengths = [], [], [], [0] * len(labels)
        seen: dict[tuple[int, ...], int] = {}
        self.num_labels = len(labels)
        for row in range(len(labels)) if chosen is None else chosen:
            label = tuple(labels[row])
            if not label:
                raise UsageError(f"category {row}: has no tokens to score; give every category a name")
            if label in seen:
                raise UsageError(f"categories {seen[label]} and {row} have the same tokens; give every category a name of its own")
            seen[label], lengths[row] = row, len(label)
            above = -1
            for depth, token in enumerate(label):
                rows.append(row)
                slots.append(1 + above)
                targets.append(token)
                if depth + 1 < len(label):
                    path = label[: depth + 1]
                    if path not in nodes:
                        nodes[path] = len(nodes)
                        parents.append(above)
                    above = nodes[path]
        pieces = [] if max_positions is None or len(nodes) <= max_positions else pieces_of(labels, max_positions)
        self._parts = nn.ModuleList(LabelTrie(labels, chosen=piece) for piece in pieces)
        if not pieces and len(nodes) > MOST_NODES:
            raise UsageError(
                f"{len(labels):,} categories make a tree of {len(nodes):,} tokens, at most {MOST_NODES:,} are read in one pass; set "
                "reasoner.llava.max_positions to cut it, or give fewer categories"
            )
        ancestors = torch.eye(0 if pieces else len(nodes), dtype=torch.bool)
        for node, parent in enumerate(parents[: len(ancestors)]):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        self._keep("tokens", [path[-1] for path in nodes])
        self._keep("depths", [len(path) - 1 for path in nodes])
        self._keep("rows", rows)
        self._keep("slots", slots)
        self._keep("targets", targets)
        self._keep("lengths", lengths)
        self.register_buffer("ancestors", ancestors, persistent=False)

    def _keep(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def __len__(self) -> int:
        """Number of nodes N: tokens fed besides the context."""
        return self.tokens.numel()

    @property
    def parts(self) -> list[LabelTrie]:
        """Trees that have every label once between them, numbered as here; their sums add up to this one's."""
        return list(self._parts) or [self]  # type: ignore[arg-type]

    def sums(self, picked: Tensor) -> Tensor:
        """Sum along every label's path.

        Args:
            picked: (B, F) log-probabilities of the label tokens, in the order of ``rows``.

        Returns:
            (B, A) log P(label), natural logarithm; 0 for a label that is not laid out.
        """
        return picked.new_zeros(picked.shape[0], self.num_labels).index_add(1, self.rows, picked)


def pieces_of(labels: Sequence[Sequence[int]], max_positions: int) -> list[list[int]]:
    """Divide labels among trees of at most so many nodes, neighbours together so that few beginnings are read twice.

    Args:
        labels: Token sequences, each closed by an end token.
        max_positions: Nodes a tree may have; a label that needs more has one of its own.

    Returns:
        The numbers of the labels of each tree, in the order of their tokens.

    Raises:
        UsageError: ``max_positions`` below 1.
    """
    if max_positions < 1:
        raise UsageError(f"max_positions {max_positions}: use 1 or more, or leave it out for one pass")
    pieces: list[list[int]] = []
    size = 0
    for row in sorted(range(len(labels)), key=lambda row: tuple(labels[row])):
        path = labels[row][:-1]
        last = labels[pieces[-1][-1]][:-1] if pieces else ()
        shared = next((i for i, (a, b) in enumerate(zip(path, last, strict=False)) if a != b), min(len(path), len(last)))
        if pieces and size + len(path) - shared <= max_positions:
            pieces[-1].append(row)
            size += len(path) - shared
        else:
            pieces.append([row])
            size = len(path)
    return pieces


def require_room(trie: LabelTrie, before: int, positions: int, classes: Sequence[str]) -> None:
    """Check that the context and every label behind it fit into a model.

    Args:
        trie: The labels.
        before: Positions that prompt and context take.
        positions: How many the model has.
        classes: The labels' names, for the message.

    Raises:
        UsageError: A context that fills the model by itself, or a label too long for what it leaves.
    """
    longest = int(trie.lengths.argmax())
    read = int(trie.lengths[longest]) - 1  # the end token is never read
    if before + read <= positions:
        return
    if before >= positions:
        raise UsageError(
            f"prompts, events and instruction take {before} tokens, the LLaVA has positions for {positions}; use fewer events, or an "
            "instruction that does not list the categories"
        )
    name = classes[longest]
    shown = name if len(name) <= 40 else f"{name[:37]}..."
    raise UsageError(
        f"category {longest} {shown!r}: its {read} tokens do not fit behind the {before} of prompts, events and instruction, the LLaVA has "
        f"positions for {positions}; give it a shorter name"
    )


# -- its scores ----------------------------------------------------------------------------------------------------------------------------


def score(model: LlavaForConditionalGeneration, projected: Tensor, context: Tensor, trie: LabelTrie, form: Form | None = None) -> Tensor:
    """Log-likelihood of every label after the context, exactly as one forward per label would give it.

    Three forms give the same numbers:

    - ``packed``: the tree's nodes follow the context in one sequence; each attends to the whole context and to the nodes above it, at the
      position it would have in its own label, so every path sees what it would see alone.
    - ``two_pass``: the context first, then the tree over the context's keys and values, one pass for each of ``trie.parts``. Needs our
      attention kernel.
    - ``batched``: the context first, then the labels as a batch, each with a copy of the context's keys and values. Slow, and large without
      parts (half a megabyte a copied token in 7 billion weights), but needs no attention mask, so any kernel can do it; not with gradient
      checkpointing.

    Only the context's last position and the nodes go through the vocabulary head. All clips share one context, hence nothing is padded.

    Args:
        model: The LLaVA, with or without deep prompts attached.
        projected: (B, M, L) event vectors behind LLaVA's projector.
        context: (C,) int64 token ids with exactly M image placeholders.
        trie: The labels.
        form: One of the three; None chooses: packed for one part; for more, two passes with our kernel, else packed part by part; batched
            where the attention kernel takes no mask.

    Returns:
        (B, A) float32 log P(label | context), natural logarithm; not normalised over the labels.

    Raises:
        UsageError: A form that the attention kernel cannot do.
    """
    kernel = model.model.language_model.config._attn_implementation
    masks = has_kernel(model) or kernel in MASKED
    if form is None:
        form = "batched" if not masks else "two_pass" if len(trie.parts) > 1 and has_kernel(model) else "packed"
    if form == "packed" and not masks:
        raise UsageError(f"attention kernel {kernel}: cannot take the mask of the label tree; use sdpa")
    if form == "two_pass" and not has_kernel(model):
        raise UsageError(f"attention kernel {kernel}: cannot score in two passes; use sdpa")
    if form == "batched" and model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UsageError(f"attention kernel {kernel}: scores labels over a cache, which gradient checkpointing forbids; use sdpa")
    if form == "packed":
        return torch.stack([_packed(model, projected, context, part) for part in trie.parts]).sum(0)
    passes = _two_pass if form == "two_pass" else _batched
    return passes(model, projected, context, trie)


def _packed(model: LlavaForConditionalGeneration, projected: Tensor, context: Tensor, trie: LabelTrie) -> Tensor:
    length = context.numel()
    mask = _tree_mask(model, length, trie)
    if not has_kernel(model):  # a mask over everything
        causal = mask.new_full((length, mask.shape[3]), torch.finfo(mask.dtype).min).triu(1)
        mask = torch.cat([causal[None, None], mask], 2)
    positions = torch.cat([torch.arange(length, device=context.device), length + trie.depths])
    hidden = _read(model, torch.cat([context, trie.tokens]), positions, projected, attention_mask=mask if len(trie) else None)
    return _sums(model, hidden[:, length - 1 :], trie)


def _two_pass(model: LlavaForConditionalGeneration, projected: Tensor, context: Tensor, trie: LabelTrie) -> Tensor:
    length, states = context.numel(), ContextStates()
    end = _read(model, context, torch.arange(length, device=context.device), projected, keep=states)[:, -1:]

    def tree(part: LabelTrie, end: Tensor) -> Tensor:
        if not len(part):
            return _sums(model, end, part)
        batch = part.tokens.expand(len(end), -1)
        mask = _tree_mask(model, length, part)
        nodes = model.model(
            input_ids=batch, position_ids=(length + part.depths)[None], attention_mask=mask, use_cache=False, after=states
        ).last_hidden_state
        return _sums(model, torch.cat([end, nodes], 1), part)

    return _each(tree, trie, end)


def _batched(model: LlavaForConditionalGeneration, projected: Tensor, context: Tensor, trie: LabelTrie) -> Tensor:
    length, device = context.numel(), context.device
    cache = DynamicCache(config=model.config.text_config)
    end = _read(model, context, torch.arange(length, device=device), projected, past_key_values=cache, use_cache=True)[:, -1:]

    def labels(part: LabelTrie, end: Tensor) -> Tensor:
        fed = part.slots > 0  # label tokens behind another one of their label
        words = part.tokens[part.slots[fed] - 1].split(part.lengths[part.rows.unique_consecutive()].sub(1).tolist())
        rows = pad_sequence(list(words), batch_first=True)  # (A', D), padded behind: causal attention never looks there
        number, width = rows.shape
        hidden = end
        if width:
            copies = [(layer.keys.repeat_interleave(number, 0), layer.values.repeat_interleave(number, 0)) for layer in cache.layers]
            read = model.model(
                input_ids=rows.repeat(len(end), 1),
                position_ids=(length + torch.arange(width, device=device))[None],
                past_key_values=DynamicCache(copies),
                use_cache=True,
            ).last_hidden_state
            place = pad_sequence([torch.ones_like(word, dtype=torch.bool) for word in words], batch_first=True)
            hidden = torch.cat([end, read.unflatten(0, (len(end), number))[:, place]], 1)
        picked = token_log_probabilities(hidden, model.lm_head.weight, torch.where(fed, fed.cumsum(0), 0), part.targets)
        return part.sums(picked)

    return _each(labels, trie, end)


def _each(score_part: Callable[[LabelTrie, Tensor], Tensor], trie: LabelTrie, end: Tensor) -> Tensor:
    """Sum of the parts' scores; what a part needs in the backward pass is there for one part at a time."""
    if len(trie.parts) > 1 and torch.is_grad_enabled():
        return torch.stack([checkpoint(score_part, part, end, use_reentrant=False) for part in trie.parts]).sum(0)
    return torch.stack([score_part(part, end) for part in trie.parts]).sum(0)


def _read(model: LlavaForConditionalGeneration, ids: Tensor, positions: Tensor, projected: Tensor, **kwargs: Any) -> Tensor:
    """(B, n, L), the last layer's output for a sequence of ids (n,) with the events in their places."""
    seen = {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}
    settings = {"use_cache": False, **kwargs}
    output = model.model(input_ids=ids.expand(len(projected), -1), position_ids=positions[None], mm_encoder_outputs=seen, **settings)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _tree_mask(model: LlavaForConditionalGeneration, length: int, trie: LabelTrie) -> Tensor:
    """(1, 1, N, C + N) additive: nodes see the context, themselves and what is above them."""
    dtype = model.get_input_embeddings().weight.dtype
    mask = torch.zeros(len(trie), length + len(trie), dtype=dtype, device=trie.tokens.device)
    mask[:, length:].masked_fill_(~trie.ancestors, torch.finfo(dtype).min)
    return mask[None, None]


def _sums(model: LlavaForConditionalGeneration, hidden: Tensor, trie: LabelTrie) -> Tensor:
    """(B, 1 + N, L) at the context's end and the nodes → (B, A)."""
    return trie.sums(token_log_probabilities(hidden, model.lm_head.weight, trie.slots, trie.targets))


def token_log_probabilities(hidden: Tensor, weight: Tensor, slots: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of single words, without the logits of all words at all positions being there at once.

    Always in float32: with logits rounded to 16 bits, sums over a label are off by tenths. In training the blocks are computed anew in the
    backward pass.

    Args:
        hidden: (B, S, L) the last layer's output.
        weight: (V, L) the vocabulary head.
        slots: (F,) int64 in [0, S), the position that predicts each word.
        targets: (F,) int64 in [0, V), the words.

    Returns:
        (B, F) float32, natural logarithm.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.float()
        again = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        blocks = [
            checkpoint(_mass, hidden, words, use_reentrant=False, preserve_rng_state=False) if again else _mass(hidden, words)
            for words in weight.split(WORDS)
        ]
        total = torch.stack(blocks, -1).logsumexp(-1)  # (B, S)
        logits = torch.einsum("bfl,fl->bf", hidden[:, slots], weight[targets].float())
        return logits - total[:, slots]


def _mass(hidden: Tensor, words: Tensor) -> Tensor:
    """log Σ exp logit over some words: (B, S, L), (v, L) → (B, S)"""
    return F.linear(hidden, words.float()).logsumexp(-1)
