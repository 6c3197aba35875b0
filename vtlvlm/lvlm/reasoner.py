"""Maps event vectors to the log-likelihood of every action (Sec. III-B)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.adapters import Adapter, FullFineTuning
from vtlvlm.lvlm.context import embed_context
from vtlvlm.lvlm.fused import require_liger, use_liger
from vtlvlm.lvlm.generative import answer_loss, answer_nodes, answer_table, language_loss
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava, load_config, load_llava, load_tokenizer, projector_width
from vtlvlm.lvlm.lower_layers import above, below
from vtlvlm.lvlm.masks import MASKED
from vtlvlm.lvlm.prefix import use_kernel
from vtlvlm.lvlm.projector_init import EventMoments, Votes, align
from vtlvlm.lvlm.scoring import ALIGNMENT, LabelScores, LabelTrie, packed, run_packed, score, score_states
from vtlvlm.lvlm.texts import read_texts
from vtlvlm.lvlm.trainable import TrainableCount, keep_float32, size

LOG = logging.getLogger(__name__)


ScoreKind = Literal["log_likelihood", "pmi"]


class EventReasoner(nn.Module):
    """A LLaVA that reads [soft prompts; event sentence; instruction] and scores the categories (eq. 5 to 7).

    Args:
        llava: The LLaVA and its computation.
        adapter: The trained part of the language model, which is frozen otherwise: ``DeepPrompts`` (the paper's), ``LoRA``,
            ``FullFineTuning``, or ``NoAdapter`` for the untuned model.
        instruction: The question to the model.
        train_projector: Also train LLaVA's projector. A freshly composed LLaVA needs this.
        init_projector: ``probe`` fits the projector to the training clips in closed form before training (``projector_init``), so that a
            sentence resembles the words of its category. It is for projectors that were never aligned, and needs ``train_projector``.
            ``keep`` keeps the checkpoint's projector.
        sentence_mean_weight: Weight in [0, 1] of the sentence's mean in every event that the projector reads. With 0, the paper's, an event
            describes its own moment alone. With 1 all events are the mean, and the order is lost. A projector trained on only a few hundred
            clips reads single events badly (figures: docs/log.md). Actions that are each other's reversal in time need ``delta_weight`` in
            stage 1.
        label_score: ``log_likelihood`` takes log P(label | context), as eq. 6 does. ``pmi`` subtracts each label's prior, so that long and
            rare names start level with short ones (domain-conditional PMI, arXiv 2104.08315). The prior is the mean log-likelihood over
            training clips, measured when training starts. An untrained model uses the log-likelihood after empty events (all zero), without
            the adapter.

    Attributes:
        base: The LLaVA; None before :meth:`build`.
        classes: Category names in the order of the scores.
        prior: (A,) nats, subtracted from the log-likelihoods; zero for ``log_likelihood``.
        sharded: Whether the weights are split over processes. All processes must then take part in each forward pass.
        temperature: Scalar that divides the scores before the softmax; 1 until it is fitted.
    """

    base: LlavaForConditionalGeneration | None
    context: Tensor
    """(C,) int64, the token ids before the answer"""
    prior: Tensor
    temperature: Tensor
    answers: Tensor
    """(A, T) int64, each category's tokens with its end token, padded with -100"""
    answer_nodes: Tensor
    """(A, T - 1) int64, the node of the label tree for each token of a category but its last, padded with 0"""

    def __init__(
        self,
        llava: Llava,
        adapter: Adapter,
        instruction: Instruction,
        train_projector: bool = False,
        init_projector: Literal["keep", "probe"] = "keep",
        sentence_mean_weight: float = 0.0,
        label_score: ScoreKind = "log_likelihood",
    ) -> None:
        super().__init__()
        if llava.attention not in adapter.kernels:
            raise UsageError(f"attention {llava.attention!r}: {type(adapter).__name__} works with {' or '.join(adapter.kernels)}")
        if llava.attention not in MASKED and llava.gradient_checkpointing:
            raise UsageError(
                f"attention {llava.attention!r}: scores labels over a cache, which gradient checkpointing forbids; leave it out"
            )
        if llava.quantization is not None and isinstance(adapter, FullFineTuning):
            raise UsageError(f"quantization {llava.quantization}: FullFineTuning cannot train quantised weights; leave it out")
        if init_projector not in ("keep", "probe"):
            raise UsageError(f"init_projector {init_projector!r}: use keep or probe")
        if init_projector == "probe" and not train_projector:
            raise UsageError("init_projector 'probe' changes the projector: set train_projector too, or init_projector to keep")
        if not 0 <= sentence_mean_weight <= 1:
            raise UsageError(f"sentence_mean_weight {sentence_mean_weight}: use a number from 0 to 1")
        if label_score not in get_args(ScoreKind):
            raise UsageError(f"label_score {label_score!r}: use one of {', '.join(get_args(ScoreKind))}")
        self.llava, self.adapter, self.instruction = llava, adapter, instruction
        self.train_projector, self.init_projector = train_projector, init_projector
        self.sentence_mean_weight, self.label_score = sentence_mean_weight, label_score
        self.base = None
        self.trie: LabelTrie | None = None
        self._shorter: tuple[LabelTrie, ...] = ()  # in a tuple, so that it is not registered: DDP broadcasts the buffers of all ranks
        self.classes: tuple[str, ...] = ()
        self.num_events = self._first_event = 0
        self.sharded = False
        self.register_buffer("context", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("prior", torch.zeros(0))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("answers", torch.empty(0, 0, dtype=torch.int64), persistent=False)
        self.register_buffer("answer_nodes", torch.empty(0, 0, dtype=torch.int64), persistent=False)

    def build(self, classes: Sequence[str], num_events: int, event_dim: int, mesh: DeviceMesh | None = None, fresh: bool = True) -> None:
        """Load the LLaVA and tokenise context and labels. A second call with other categories or M only tokenises these again.

        All settings are checked before the weights are read.

        Args:
            classes: Category names, in label order.
            num_events: M, number of events in a sentence.
            event_dim: E, width of an event vector.
            mesh: Processes that share the weights (:meth:`shard`); None keeps them whole.
            fresh: Start the adapter from its settings and measure the prior. False if trained weights are loaded next.

        Raises:
            UsageError: There is no such LLaVA, its projector has another width, chosen layers do not exist, the starting prefix is of
                another model, categories have the same words, or the tokens exceed the model's positions.
        """
        path, revision = self.llava.path, self.llava.revision
        config = load_config(path, revision)
        if projector_width(config) != event_dim:
            raise UsageError(
                f"{path}: its projector reads vectors {projector_width(config)} wide, the events have {event_dim}; "
                f"set event_dim to {projector_width(config)} in stage 1, or use another LLaVA"
            )
        if self.llava.kernels == "liger":
            require_liger(config, path)
        self.adapter.build(config.text_config)
        starts = fresh and self.base is None
        if starts:
            self.adapter.find_start(config.text_config, path, revision)
        read = read_texts(self.llava, self.instruction, self.adapter.tokens, config, classes, num_events)
        if self.base is None:
            computed = self.llava
            base, _ = load_llava(path, revision, computed.dtype, attention=computed.attention, quantization=computed.quantization)
            if starts:
                self.adapter.start(base, load_tokenizer(path, revision))
            self.take(base)
            if mesh is None:
                keep_float32(self)
        device = self._built().get_input_embeddings().weight.device  # Lightning and bitsandbytes load to the GPU at once
        self.context, self.answers = read.context.to(device), answer_table(read.labels).to(device)
        self.answer_nodes = answer_nodes(read.trie).to(device)
        self.trie, self._shorter, self._first_event = self._aligned(read.trie), (), read.first_event
        self.classes, self.num_events = tuple(classes), num_events
        self.temperature = self.temperature.to(device)
        self.prior = self._prior(event_dim) if fresh else torch.zeros(len(self.classes), device=device)
        if mesh is not None:
            self.shard(mesh)

    def take(self, base: LlavaForConditionalGeneration) -> None:
        """Make a frozen LLaVA the base and attach the adapter. :meth:`build` calls it with the LLaVA that it loads."""
        if self.llava.attention == "sdpa":
            use_kernel(base)
        if self.llava.kernels == "liger":
            use_liger(base)
        self.adapter.attach(base)
        if self.train_projector:
            base.model.multi_modal_projector.requires_grad_(True)
        if self.llava.gradient_checkpointing:
            enable = (
                getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            )  # the name in older releases
            enable({"use_reentrant": False})
            base.disable_input_require_grads()  # only reentrant checkpointing needs them; layers below the first prompt record nothing
        self.base = base
        self.train(self.training)

    def shard(self, mesh: DeviceMesh) -> None:
        """Split weights, gradients and optimiser states over processes (FSDP2). Each layer is gathered only while it computes.

        Trained weights are kept in float32 and gathered in ``dtype``; gradients are summed in float32.

        Args:
            mesh: One dimension over the processes.

        Raises:
            UsageError: The reasoner is not built, or its weights are quantised and cannot be split.
        """
        base = self._built()
        if self.llava.quantization is not None:
            raise UsageError(f"quantization {self.llava.quantization}: quantised weights cannot be split over processes; use strategy ddp")
        compute = base.get_input_embeddings().weight.dtype
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        for module in (*base.model.language_model.layers, self.projector, self):
            keep_float32(module)  # one by one: no process holds the whole model in float32
            fully_shard(module, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(self, "generative_loss")
        self.sharded = True

    def trainable_parameters(self) -> tuple[TrainableCount, TrainableCount]:
        """Trained parameters of the adapter and of the projector.

        Raises:
            UsageError: Not built.
        """
        base = self._built()
        total = sum(map(size, self.parameters()))
        projector = sum(size(p) for p in self.projector.parameters() if p.requires_grad)
        return (
            TrainableCount(f"adapter ({type(self.adapter).__name__})", sum(map(size, self.adapter.trained(base))), total),
            TrainableCount("projector", projector, total),
        )

    @torch.no_grad()
    def _prior(self, event_dim: int) -> Tensor:
        """The prior (A,) after empty events, without the adapter; zero for ``log_likelihood``."""
        base = self._built()
        if self.label_score == "log_likelihood":
            return torch.zeros(len(self.classes), device=self.context.device)
        assert self.trie is not None
        with self.adapter.off(base):
            empty = torch.zeros(1, self.num_events, event_dim, device=self.context.device)
            return score(base, self.embed(empty), self.trie)[0]

    @torch.no_grad()
    def align(self, votes: Votes, moments: EventMoments) -> None:
        """Fit the projector to training events (``projector_init.py``).

        Raises:
            UsageError: The reasoner is not built, all events are equal, or the projector cannot represent a linear map.
        """
        table = self._built().get_input_embeddings().weight
        tokenizer = load_tokenizer(self.llava.path, self.llava.revision)
        ids = tokenizer([f" {name}" for name in self.classes], add_special_tokens=False).input_ids
        words = torch.stack([table[torch.tensor(row, device=table.device)].float().mean(0) for row in ids])
        align(self.projector, votes, moments, words, float(table.float().square().mean().sqrt()))

    def train(self, mode: bool = True) -> EventReasoner:
        """Set training mode for trained parts. A frozen model leaves evaluation mode only for gradient checkpointing."""
        super().train(mode)
        if self.base is not None:
            self.base.train(mode and (self.llava.gradient_checkpointing or self.adapter.inner))
        return self

    @property
    def projector(self) -> LlavaMultiModalProjector:
        """LLaVA's own projector.

        Raises:
            UsageError: Not built.
        """
        return self._built().model.multi_modal_projector

    def mix_sentence_mean(self, vectors: Tensor) -> Tensor:
        """Event vectors (B, M, E) -> (B, M, E), each mixed with ``sentence_mean_weight`` of the sentence's mean."""
        return vectors.lerp(vectors.mean(1, keepdim=True), self.sentence_mean_weight) if self.sentence_mean_weight else vectors

    def project(self, vectors: Tensor) -> Tensor:
        """Event vectors (B, M, E) → mixed with their mean → projector → (B, M, L)."""
        projector = self.projector
        return projector(self.mix_sentence_mean(vectors).to(projector.linear_1.weight.dtype))

    def embed(self, vectors: Tensor) -> Tensor:
        """Event vectors (B, M, E) → the language model's input (B, C, L): the projected events in their place in the context."""
        return embed_context(self._built(vectors), self.context, self._first_event, self.project(vectors))

    @property
    def first_layer(self) -> int:
        """The number of the first layer that the adapter changes."""
        return self.adapter.first_layer(self._built().config.text_config.num_hidden_layers)

    def states(self, vectors: Tensor) -> Tensor:
        """Event vectors (B, M, E) → the input (B, C + N, L) of the first layer that the adapter changes.

        They never change while the projector is frozen, and may be stored. The label tree must be in one part.
        """
        base = self._built()
        assert self.trie is not None
        embedded = packed(base, self.embed(vectors), self.trie)
        return run_packed(base, below(base.model.language_model, self.first_layer), embedded, self.trie)

    def forward(self, vectors: Tensor) -> LabelScores:
        """Score the categories.

        Args:
            vectors: (B, M, E) event vectors.

        Raises:
            UsageError: Not built, or sentences of another length than M.
        """
        base, embedded, training = self._built(), self.embed(vectors), torch.is_grad_enabled()
        while True:
            trie = self.trie if training or not self._shorter else self._shorter[0].to(self.context.device)
            assert trie is not None
            try:
                found = score(base, embedded, trie)
                return LabelScores(found, found - self.prior)
            except torch.OutOfMemoryError:
                if training or self.sharded or not self._shorten(trie):
                    raise

    def score_states(self, states: Tensor) -> LabelScores:
        """Score the categories as :meth:`forward` does, from stored :meth:`states` (B, C + N, L)."""
        assert self.trie is not None
        found = score_states(self._built(), states, self.trie, self.first_layer)
        return LabelScores(found, found - self.prior)

    @torch.inference_mode(False)
    def _shorten(self, trie: LabelTrie) -> bool:
        """Halve the label tokens of a pass for all later passes; scores do not change. Returns False if that saves no memory."""
        now = max(map(len, trie.parts))
        labels = [[token for token in row if token >= 0] for row in self.answers.tolist()]
        shorter = LabelTrie(labels, max(1, now // 2))
        if max(map(len, shorter.parts)) >= now:
            return False
        self._shorter = (self._aligned(shorter),)
        LOG.warning("memory is short: from here on, a pass scores %d label tokens instead of %d", now // 2, now)
        return True

    def _aligned(self, trie: LabelTrie) -> LabelTrie:
        """The tree on the device of the context, with the number of nodes that kernels of GPUs take as they are."""
        if self.context.device.type == "cuda":
            trie.align(self.adapter.tokens + self.context.numel(), ALIGNMENT)
        return trie.to(self.context.device)

    def generative_loss(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The language model's own loss on the answers (``generative.py``).

        Args:
            vectors: (B, M, E) event vectors.
            labels: (B,) int64 in [0, A).

        Returns:
            Scalar, nats per token.

        Raises:
            UsageError: Not built, or sentences of another length than M.
        """
        return language_loss(self._built(vectors), self.embed(vectors), self.answers.index_select(0, labels))

    def generative_loss_of_states(self, states: Tensor, labels: Tensor) -> Tensor:
        """The loss of :meth:`generative_loss`, from stored :meth:`states` (B, C + N, L)."""
        base, length = self._built(), self.context.numel()
        fed = torch.take_along_dim(states[:, length:], self.answer_nodes.index_select(0, labels)[..., None], 1)
        sequence = torch.cat([states[:, :length], fed], 1)
        return answer_loss(base, above(base.model.language_model, self.first_layer), sequence, self.answers.index_select(0, labels))

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B, A) scores → (B, A) calibrated probabilities."""
        return (scores / self.temperature).softmax(-1)

    def trainable_state(self) -> dict[str, Tensor]:
        """Trained values by their names in this module: the adapter's weights, the projector's if it is trained, the prior of ``pmi``, the
        temperature."""
        state = {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}
        state |= {f"adapter.{name}": buffer for name, buffer in self.adapter.named_buffers()}  # constants that an MLP's output is added to
        return state | {"temperature": self.temperature} | ({"prior": self.prior} if self.label_score == "pmi" else {})

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the values of :meth:`trainable_state`.

        Raises:
            UsageError: The reasoner is not built, or the tensors are of another adapter, model, layer set or number of prompt tokens.
        """
        self._built()
        own = self.trainable_state()
        for name in sorted(own.keys() | state.keys()):
            here = tuple(own[name].shape) if name in own else "nothing"
            there = tuple(state[name].shape) if name in state else "nothing"
            if here != there:
                raise UsageError(
                    f"trained weights do not fit: {name} is {there} in the file and {here} here; use the settings they were trained with"
                )
        temperature = float(state["temperature"])
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"trained weights hold a temperature of {temperature}, which must be above 0; make the file again")
        self.load_state_dict(dict(state), strict=False)

    def _built(self, vectors: Tensor | None = None) -> LlavaForConditionalGeneration:
        """The LLaVA; checks that the event sentences fit its context."""
        if self.base is None:
            raise UsageError("the reasoner has no language model yet; call build(classes, num_events, event_dim) first")
        if vectors is not None and vectors.shape[1] != self.num_events:
            raise UsageError(
                f"event sentences have {vectors.shape[1]} events, the context has room for {self.num_events}; build for that M"
            )
        return self.base
