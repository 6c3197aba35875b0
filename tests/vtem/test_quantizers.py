"""Codes by hand, straight-through gradients, k-means only when asked, exact round trips."""

import pytest
import torch

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.quantizers import EMAQuantizer, IdentityQuantizer

CODES = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
VECTORS = torch.tensor([[[1.0, 0.5], [3.0, 0.0]], [[0.5, 3.0], [5.0, 1.0]]])
IDS = torch.tensor([[0, 1], [2, 1]])


def by_hand(**settings: float) -> EMAQuantizer:
    quantizer = EMAQuantizer(codes=3, **settings)
    quantizer.build(2)
    book = quantizer.vq._codebook
    book.embed.copy_(CODES)
    book.embed_avg.copy_(CODES)
    book.cluster_size.fill_(1)
    return quantizer


def test_hand_made_codebook() -> None:
    quantizer = by_hand().eval()
    quantized = quantizer(VECTORS)
    assert torch.equal(quantized.ids, IDS)
    assert torch.equal(quantized.vectors, CODES[IDS])
    # squared distances 1.25, 1, 1.25, 2 over 8 numbers, weight 0.25
    torch.testing.assert_close(quantized.loss, torch.tensor(0.25 * 5.5 / 8))
    assert torch.equal(quantizer.table(), CODES)


def test_straight_through_and_commitment_gradients() -> None:
    quantizer = by_hand().train()
    vectors = VECTORS.clone().requires_grad_()
    quantized = quantizer(vectors)
    direction = torch.randn_like(vectors)
    (through,) = torch.autograd.grad(quantized.vectors, vectors, direction, retain_graph=True)
    assert torch.equal(through, direction)
    (commitment,) = torch.autograd.grad(quantized.loss, vectors)
    torch.testing.assert_close(commitment, 0.25 * 2 * (VECTORS - CODES[IDS]) / 8)


def test_moving_average_by_hand() -> None:
    quantizer = by_hand(decay=0.9, dead_below=0.0).train()
    quantizer(VECTORS)
    # 4 vectors, so the counts 1, 1, 1 are put to 4/3 each; code 1 gets two vectors with sum (8, 1).
    count, total = 0.9 * 4 / 3 + 0.1 * 2, 0.9 * 4 / 3 * CODES[1] + 0.1 * torch.tensor([8.0, 1.0])
    torch.testing.assert_close(quantizer.table()[1], total / count, atol=1e-4, rtol=0)
    torch.testing.assert_close(quantizer.vq._codebook.cluster_size[0, 1], torch.tensor(count))


def test_eval_never_moves_the_codebook_and_k_means_is_never_implicit() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(codes=8)
    quantizer.build(4)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(2, 50, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    quantizer.train()(5 + torch.randn(2, 50, 4))  # one step of a moving average, far from the k-means of that batch
    assert quantizer.table().mean() < 2.5


def test_initialise_finds_clusters_and_is_deterministic() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    samples = (centres[:, None] + 0.1 * torch.randn(4, 30, 2)).flatten(0, 1)
    tables = []
    for _ in range(2):
        quantizer = EMAQuantizer(codes=4)
        quantizer.build(2)
        quantizer.initialise(samples, seed=3)
        tables.append(quantizer.table().clone())
    assert torch.equal(tables[0], tables[1])
    assert torch.cdist(centres, tables[0]).min(dim=1).values.max() < 0.1
    assert torch.equal(quantizer.vq._codebook.cluster_size, torch.full((1, 4), 30.0))


def test_too_few_vectors_for_k_means() -> None:
    quantizer = EMAQuantizer(codes=8)
    quantizer.build(2)
    with pytest.raises(DataError, match="5 training vectors for 8 codes"):
        quantizer.initialise(torch.randn(5, 2))
    with pytest.raises(DataError, match="3 distinct training vectors for 8 codes"):
        quantizer.initialise(torch.randn(3, 2).repeat(10, 1))


def test_rare_codes_are_revived_and_used_ones_kept() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(codes=16, decay=0.9)
    quantizer.build(2)
    samples = torch.randn(400, 2)
    quantizer.initialise(samples)
    with torch.no_grad():
        for name in ("embed", "embed_avg"):
            getattr(quantizer.vq._codebook, name)[:, :8] += 1000 * (1 if name == "embed" else 25)
    assert quantizer.eval()(samples).ids.unique().numel() == 8
    quantizer.train()
    for _ in range(60):
        quantizer(torch.randn(1, 200, 2))
    assert quantizer.eval()(samples).ids.unique().numel() >= 15


def test_bad_vectors_do_not_poison_the_codebook() -> None:
    quantizer = by_hand().train()
    vectors = VECTORS.clone()
    vectors[0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        quantizer(vectors)
    assert torch.equal(quantizer.table(), CODES)


def test_state_dict_round_trip_continues_to_the_bit() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(codes=8)
    quantizer.build(4)
    quantizer.initialise(torch.randn(100, 4))
    quantizer.train()(torch.randn(2, 20, 4))
    resumed = EMAQuantizer(codes=8)
    resumed.build(4)
    resumed.load_state_dict(quantizer.state_dict())
    batch = torch.randn(2, 20, 4)
    results = []
    for each in (quantizer, resumed.train()):
        torch.manual_seed(1)
        results.append(each(batch).ids)
    assert torch.equal(*results)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in quantizer.state_dict().items())


def test_float32_under_autocast_and_refuses_a_cast_codebook() -> None:
    quantizer = by_hand().train()
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(VECTORS.bfloat16())
    assert quantized.vectors.dtype == quantizer.table().dtype == quantized.loss.dtype == torch.float32
    with pytest.raises(UsageError, match="bf16-mixed"):
        quantizer.bfloat16()(VECTORS)


def test_identity() -> None:
    quantizer = IdentityQuantizer()
    quantizer.build(2)
    quantizer.initialise(VECTORS.flatten(0, 1))
    quantized = quantizer(VECTORS)
    assert torch.equal(quantized.vectors, VECTORS)
    assert torch.equal(quantized.ids, torch.full((2, 2), -1))
    assert quantized.loss == 0
    assert quantizer.table() is None
    assert quantizer.num_codes == 0


def test_refused_settings() -> None:
    with pytest.raises(UsageError, match="codes=1"):
        EMAQuantizer(codes=1)
    with pytest.raises(UsageError, match=r"decay=1\.5"):
        EMAQuantizer(decay=1.5)
