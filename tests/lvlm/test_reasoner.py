from pathlib import Path
from typing import Any

import pytest
import torch
from reasoners import placed, reasoner_of
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_llava, load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.projector_init import EventMoments, fit_votes
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, score


def make(path: Path, classes: tuple[str, ...], tokens: int = 4, events: int = 6, dropout: float = 0.0, **settings: object) -> EventReasoner:
    reasoner = reasoner_of(path, DeepPrompts(tokens, dropout=dropout), Instruction(list_categories=False), **settings)
    reasoner.build(classes, events, 16)
    return reasoner


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, {"adapter.key", "adapter.value"}),
        ({"tokens": 0}, set()),
        ({"label_score": "pmi"}, {"adapter.key", "adapter.value", "prior"}),
        (
            {"tokens": 0, "train_projector": True},
            {f"base.model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")},
        ),
    ],
)
def test_what_is_trained(llava_path: Path, classes: tuple[str, ...], settings: dict, trained: set[str]):
    reasoner = make(llava_path, classes, **settings)
    assert set(reasoner.trainable_state()) == trained | {"temperature"}
    assert set(reasoner.trainable_state()) <= set(reasoner.state_dict())


def test_it_learns_events(llava_path: Path, classes: tuple[str, ...]):
    reasoner = make(llava_path, classes, train_projector=True).train()
    vectors, labels = torch.randn(8, 6, 16), torch.arange(8)
    optimizer = torch.optim.AdamW([p for p in reasoner.parameters() if p.requires_grad], 1e-2)
    before = {name: tensor.clone() for name, tensor in reasoner.base.model.language_model.state_dict().items()}
    losses = []
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(reasoner(vectors).score, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert reasoner(vectors).score.argmax(1).tolist() == labels.tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in reasoner.base.model.language_model.state_dict().items())


def test_events_with_a_share_of_their_mean(llava_path: Path, classes: tuple[str, ...]):
    vectors = torch.randn(2, 6, 16)
    alone, shared, mean = (make(llava_path, classes, sentence_mean_weight=share).eval() for share in (0.0, 0.25, 1.0))
    assert torch.equal(alone.project(vectors), alone.projector(vectors))
    by_hand = torch.stack([0.75 * vectors[:, m] + 0.25 * vectors.sum(1) / 6 for m in range(6)], 1)
    torch.testing.assert_close(shared.project(vectors), shared.projector(by_hand))
    with torch.no_grad():
        backwards = [float((reasoner(vectors).score - reasoner(vectors.flip(1)).score).abs().max()) for reasoner in (alone, shared, mean)]
    assert min(backwards[:2]) > 1e-4  # the order is heard
    assert backwards[2] < 1e-5
    for share in (-0.1, 1.5):
        with pytest.raises(UsageError, match=f"sentence_mean_weight {share}: use a number from 0 to 1"):
            make(llava_path, classes, sentence_mean_weight=share)


def test_state_goes_from_one_to_another(llava_path: Path, classes: tuple[str, ...]):
    first, second = (make(llava_path, classes, train_projector=True).eval() for _ in range(2))
    vectors = torch.randn(2, 6, 16)
    assert not torch.equal(first(vectors).score, second(vectors).score)
    second.load_trainable_state({name: tensor.clone() for name, tensor in first.trainable_state().items()})
    assert torch.equal(first(vectors).score, second(vectors).score)
    second.temperature.fill_(2.5)
    first.load_trainable_state(second.trainable_state())
    assert float(first.temperature) == 2.5
    torch.testing.assert_close(first.probabilities(first(vectors).score), (second(vectors).score / 2.5).softmax(-1))
    with pytest.raises(UsageError, match=r"adapter\.key is"):
        make(llava_path, classes, tokens=3, train_projector=True).load_trainable_state(first.trainable_state())
    with pytest.raises(UsageError, match=r"linear_1\.bias is \(32,\) in the file and nothing here"):
        make(llava_path, classes).load_trainable_state(first.trainable_state())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_with_checkpointing(llava_path: Path, classes: tuple[str, ...], dtype: str):
    vectors, gradients = torch.randn(2, 6, 16), []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        reasoner = make(llava_path, classes, train_projector=True, dtype=dtype, gradient_checkpointing=checkpointing, dropout=0.2).train()
        assert reasoner.base.training is checkpointing
        reasoner(vectors).score.logsumexp(1).sum().backward()
        gradients.append({name: p.grad for name, p in reasoner.named_parameters() if p.requires_grad})
        assert all(gradient.dtype == torch.float32 for gradient in gradients[-1].values())
    assert len(gradients[0]) == 6
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_evaluation_is_deterministic_and_gradient_free_settings_stay(llava_path: Path, classes: tuple[str, ...]):
    reasoner = make(llava_path, classes, dropout=0.5, gradient_checkpointing=True)
    reasoner.train().eval()
    vectors = torch.randn(2, 6, 16)
    assert not reasoner.base.training
    assert torch.equal(reasoner(vectors).score, reasoner(vectors).score)
    assert torch.equal(reasoner(vectors.double()).score, reasoner(vectors).score)  # float16 from a cache, float64 from numpy


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("max_positions", [None, 2])
def test_half_precision_trains_as_whole_numbers_do(
    llava_path: Path, classes: tuple[str, ...], max_positions: int | None, checkpointing: bool
) -> None:
    """The paper's precision: a bfloat16 model under autocast with float32 prompts. Losses and gradients are those of float32 but for the
    rounding, and follow the prompts' values."""
    vectors, labels, found = torch.randn(4, 6, 16), torch.arange(4), []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        options = {"dtype": dtype, "gradient_checkpointing": checkpointing, "max_positions": max_positions}
        reasoner = make(llava_path, classes, **options).train()
        with torch.no_grad():
            reasoner.adapter.key.normal_()
            reasoner.adapter.value.normal_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            scores = reasoner(vectors).score
        assert scores.dtype == torch.float32
        torch.nn.functional.cross_entropy(scores, labels).backward()
        found.append((scores.detach().log_softmax(-1), reasoner.adapter.key.grad, reasoner.adapter.value.grad))
        assert all(grad.dtype == torch.float32 for grad in found[-1][1:])
    with torch.no_grad():
        reasoner.adapter.value.add_(1)
        assert (reasoner(vectors).score.log_softmax(-1) - found[1][0]).abs().max() > 1
    whole, half = found
    assert (whole[0] - half[0]).abs().max() < 0.5
    for a, b in zip(whole[1:], half[1:], strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.95


def test_everything_is_laid_out_where_the_weights_were_loaded(
    llava_path: Path, classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where Lightning builds models and bitsandbytes loads them."""
    base, tokenizer = load_llava(str(llava_path))
    monkeypatch.setattr("vtlvlm.lvlm.reasoner.load_llava", lambda *_, **__: (base.to("meta"), tokenizer))
    reasoner = reasoner_of(llava_path, DeepPrompts(0), Instruction(), label_score="pmi")
    reasoner.build(classes, 6, 16, fresh=False)
    assert {tensor.device.type for tensor in (*reasoner.parameters(), *reasoner.buffers())} == {"meta"}


def test_hidden_prompts_leave_the_untouched_model_bit_for_bit(llava_path: Path, classes: tuple[str, ...]) -> None:
    """Of events, as one reads a label alone: with no prompt tokens, and with prompts that are switched off."""
    plain, bare, hidden = load_llava(str(llava_path))[0], make(llava_path, classes, tokens=0), make(llava_path, classes, tokens=4)
    with torch.no_grad():
        projected = bare.project(torch.randn(2, 6, 16))
        ids, logits = bare.context.expand(2, -1), []
        for model in (plain, bare.base, hidden.base):
            with hidden.adapter.off(hidden.base):
                logits.append(model(inputs_embeds=placed(model, ids, projected)).logits)
        assert (hidden.base(inputs_embeds=placed(hidden.base, ids, projected)).logits - logits[0]).abs().max() > 1e-4
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_other_categories_without_loading_again(llava_path: Path, classes: tuple[str, ...]):
    reasoner = make(llava_path, classes).eval()
    base, vectors = reasoner.base, torch.randn(2, 6, 16)
    expected = reasoner(vectors).score[:, [3, 1]]
    reasoner.build((classes[3], classes[1]), 6, 16)
    assert reasoner.base is base
    assert reasoner.classes == (classes[3], classes[1])
    torch.testing.assert_close(reasoner(vectors).score, expected, atol=1e-5, rtol=0)


def test_starting_from_a_text(llava_path: Path, classes: tuple[str, ...]):
    prompts = DeepPrompts(8, init_text="the person is doing what they do")
    reasoner = reasoner_of(llava_path, prompts, Instruction(list_categories=False)).eval()
    reasoner.build(classes, 6, 16)
    model, tokenizer = load_llava(str(llava_path))
    ids = (tokenizer("the person is doing what they do").input_ids * 8)[:8]
    cache = model.model.language_model(input_ids=torch.tensor([ids])).past_key_values
    torch.testing.assert_close(prompts.key.detach(), torch.cat([layer.keys for layer in cache.layers]))


def test_mistakes_are_found_before_the_weights_are_read(llava_path: Path, tmp_path: Path, classes: tuple[str, ...]):
    folder = tmp_path / "llava"
    folder.mkdir()
    for file in llava_path.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())

    def refused(words: str, classes: tuple[str, ...] = classes, prompts: DeepPrompts | None = None, event_dim: int = 16) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            reasoner_of(folder, prompts or DeepPrompts(4), Instruction()).build(classes, 6, event_dim)
        assert "\n" not in str(caught.value)

    refused("reads vectors 16 wide, the events have 1024", event_dim=1024)
    refused(r"layers \[7\]: \[7\] do not exist", prompts=DeepPrompts(4, [7]))
    refused("'drink': is named 2 times", classes=("drink", "drink"))
    refused("category 1: has no name", classes=("drink", ""))
    refused("weights cannot be read")


def test_mistakes_in_use_are_named(llava_path: Path, classes: tuple[str, ...]):
    with pytest.raises(UsageError, match="5 events, the context has room for 6"):
        make(llava_path, classes)(torch.randn(2, 5, 16))
    with pytest.raises(UsageError, match="call build"):
        reasoner_of(llava_path, DeepPrompts(), Instruction())(torch.randn(2, 6, 16))


def test_places_are_counted_before_the_weights_are_read(llava_path: Path, classes: tuple[str, ...], tmp_path: Path):
    """1,024 positions for prompt, events, instruction and the longest name."""
    folder = tmp_path / "llava"
    folder.mkdir()
    for file in llava_path.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    reasoner = reasoner_of(folder, DeepPrompts(16), Instruction(list_categories=False))
    with pytest.raises(UsageError, match=r"category 8 'run run .*\.\.\.': its \d+ tokens do not fit .* positions for 1024; .* shorter"):
        reasoner.build((*classes, "run " * 800), 500, 16)
    with pytest.raises(UsageError, match=r"take 10\d\d tokens, the LLaVA has positions for 1024; use fewer events"):
        reasoner.build(classes, 1000, 16)
    tokenizer = load_tokenizer(str(folder))
    words = len(reasoner.instruction.context(tokenizer, 1, classes)) - 1
    longest = max(map(len, reasoner.instruction.labels(tokenizer, classes))) - 1  # the end token is never read
    room = 1024 - 16 - words - longest
    with pytest.raises(UsageError, match="weights cannot be read"):
        reasoner.build(classes, room, 16)
    with pytest.raises(UsageError, match="do not fit"):
        reasoner.build(classes, room + 1, 16)


def test_scores_in_parts_after_alignment(llava_path: Path, classes: tuple[str, ...]):
    """What memory is short for changes no score, with a projector that was set in closed form as with another."""
    whole, parts = (make(llava_path, classes, train_projector=True, init_projector="probe", max_positions=n) for n in (None, 3))
    events, moments = torch.randn(32, 6, 16), EventMoments(16)
    moments.add(events)
    whole.align(fit_votes(events.mean(1), torch.arange(32) % len(classes), torch.arange(32), len(classes)), moments)
    parts.load_trainable_state(whole.trainable_state())
    vectors = torch.randn(2, 6, 16)
    assert len(parts.trie.parts) > 2
    torch.testing.assert_close(parts(vectors).score, whole(vectors).score, atol=1e-4, rtol=1e-5)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let scoring run out of memory where it reads more than so many label tokens at once."""

    def scarce(base: Any, context: Tensor, trie: LabelTrie) -> Tensor:
        if max(map(len, trie.parts)) > room:
            raise torch.OutOfMemoryError("out of memory")
        return score(base, context, trie)

    monkeypatch.setattr("vtlvlm.lvlm.reasoner.score", scarce)


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_evaluation_in_parts_where_memory_is_short(
    llava_path: Path, classes: tuple[str, ...], inference: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It is found out once, changes no score, and leaves the next training step alone."""
    reasoner, vectors = make(llava_path, classes), torch.randn(2, 6, 16)
    whole = reasoner(vectors).score.detach()
    nodes, buffers = len(reasoner.trie), [name for name, _ in reasoner.named_buffers()]
    short_of_memory(monkeypatch, nodes // 2)
    with inference():
        torch.testing.assert_close(reasoner(vectors).score, whole, atol=1e-4, rtol=1e-5)
        reasoner(vectors)
    assert [record.getMessage() for record in caplog.records if "memory is short" in record.getMessage()] == [
        f"memory is short: from here on, a pass scores {nodes // 2} label tokens instead of {nodes}"
    ]
    assert [name for name, _ in reasoner.named_buffers()] == buffers  # DDP broadcasts those of all ranks together
    with pytest.raises(torch.OutOfMemoryError):
        reasoner(vectors)
    short_of_memory(monkeypatch, nodes)
    reasoner(vectors).score.sum().backward()
    assert all(parameter.grad is not None for parameter in reasoner.adapter.parameters())


def test_evaluation_ends_where_parts_do_not_help(llava_path: Path, classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    reasoner = make(llava_path, classes)
    short_of_memory(monkeypatch, -1)
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        reasoner(torch.randn(2, 6, 16))


def test_bad_score_settings_are_named(llava_path: Path):
    with pytest.raises(UsageError, match="label_score 'best': use one of log_likelihood, pmi"):
        reasoner_of(llava_path, DeepPrompts(), Instruction(), label_score="best")
    with pytest.raises(UsageError, match="max_positions 0"):
        reasoner_of(llava_path, DeepPrompts(), Instruction(), max_positions=0)


@pytest.mark.parametrize("mode", ["log_likelihood", "pmi"])
def test_label_scores(mode: str, llava_path: Path) -> None:
    """By an independent route: reasoners without a prior, without prompts after empty events and with them after clips."""
    names = ("drink water", "sit down", "jump")
    plain, untouched = (make(llava_path, names, tokens=tokens).eval() for tokens in (3, 0))
    reasoner = make(llava_path, names, tokens=3, label_score=mode).eval()
    plain.load_trainable_state({name: tensor for name, tensor in reasoner.trainable_state().items() if name != "prior"})
    vectors = torch.randn(5, 6, 16)
    with torch.no_grad():
        empty = untouched(torch.zeros(1, 6, 16)).log_likelihood[0] if mode == "pmi" else torch.zeros(3)
        torch.testing.assert_close(reasoner.prior, empty, atol=1e-4, rtol=1e-5)
        reasoner.prior = torch.tensor([-1.0, 0.0, 2.0]) if mode == "pmi" else reasoner.prior
        found, alone = reasoner(vectors), plain(vectors)
    torch.testing.assert_close(found.log_likelihood, alone.log_likelihood, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.score, alone.log_likelihood - reasoner.prior, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.in_list_mass, alone.log_likelihood.exp().sum(1), atol=1e-6, rtol=1e-3)
    assert torch.equal(alone.score, alone.log_likelihood)
    state = reasoner.trainable_state()
    assert ("prior" in state) == (mode == "pmi")
    again = make(llava_path, names, tokens=3, label_score=mode).eval()
    again.load_trainable_state(state)
    torch.testing.assert_close(again(vectors).score, found.score)
