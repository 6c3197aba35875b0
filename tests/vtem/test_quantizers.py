"""Codes by hand, straight-through gradients, k-means only when asked, exact round trips."""

import pytest
import torch

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.learned_quantizers import LearnedQuantizer, SimVQQuantizer
from vtlvlm.vtem.quantizers import CodebookQuantizer, EMAQuantizer, FactorisedQuantizer, FSQQuantizer, IdentityQuantizer

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


def learn(quantizer: CodebookQuantizer, vectors: torch.Tensor, seed: int = 0) -> None:
    """One step of training without gradients, on (N, E) or (B, M, E)."""
    vectors = vectors if vectors.ndim == 3 else vectors[None]
    quantizer.update(vectors, quantizer.train()(vectors).ids, seed)


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
    quantizer = by_hand(decay=0.9, dead_code_threshold=0.0)
    learn(quantizer, VECTORS)
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
    quantizer.train()(5 + torch.randn(2, 50, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    learn(quantizer, 5 + torch.randn(2, 50, 4))  # one step of a moving average, far from the k-means of that batch
    assert 0 < quantizer.table().mean() < 2.5


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
    for seed in range(60):
        learn(quantizer, torch.randn(1, 200, 2), seed)
    assert quantizer.eval()(samples).ids.unique().numel() >= 15


def test_dead_codes_restart_at_vectors_of_the_step_each_at_its_own() -> None:
    """Codes 2 to 4 are far from everything. Three vectors are at hand, two of which lie at code 0."""
    quantizer = EMAQuantizer(codes=5, decay=0.5, dead_code_threshold=0.9)
    quantizer.build(2)
    book = quantizer.vq._codebook
    book.embed.copy_(torch.tensor([[0.0, 0.0], [9.0, 0.0], [99.0, 0.0], [98.0, 0.0], [97.0, 0.0]]))
    book.embed_avg.copy_(book.embed)
    book.cluster_size.fill_(1)
    vectors = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [9.0, 1.0]]])
    learn(quantizer, vectors)
    # counts 0.5 · (3/5) + 0.5 · (2, 1, 0, 0, 0) = (1.3, 0.8, 0.3, 0.3, 0.3); below 0.9 · 3/5 are the last three
    restarted = {tuple(code) for code in quantizer.table()[2:].tolist()}
    assert restarted == {tuple(vector) for vector in vectors[0].tolist()}
    torch.testing.assert_close(book.cluster_size, torch.tensor([[1.3, 0.8, 0.6, 0.6, 0.6]]))
    torch.testing.assert_close(book.embed_avg[0, 2:], 0.6 * quantizer.table()[2:])


def test_with_fewer_vectors_than_dead_codes_the_last_ones_wait() -> None:
    quantizer = EMAQuantizer(codes=5, decay=0.5, dead_code_threshold=0.9)
    quantizer.build(1)
    book = quantizer.vq._codebook
    book.embed.copy_(torch.tensor([[0.0], [50.0], [60.0], [70.0], [80.0]]))
    book.embed_avg.copy_(book.embed)
    book.cluster_size.fill_(1)
    learn(quantizer, torch.tensor([[[1.0], [2.0]]]))
    found = torch.tensor(sorted(quantizer.table().flatten().tolist()))  # code 0 is at 0.5 · (1 + 2) / 1.2
    torch.testing.assert_close(found, torch.tensor([1.0, 1.25, 2.0, 70.0, 80.0]), atol=1e-2, rtol=0)


def test_the_codebook_does_not_depend_on_how_a_step_is_cut_into_passes() -> None:
    whole, cut = by_hand(decay=0.5), by_hand(decay=0.5)
    learn(whole, VECTORS)
    ids = torch.cat([cut.train()(part).ids for part in VECTORS.split(1)])
    cut.update(VECTORS, ids)
    assert torch.equal(whole.table(), cut.table())


def test_training_leaves_the_random_state_alone() -> None:
    quantizer = by_hand(dead_code_threshold=0.9)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    learn(quantizer, VECTORS)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_vectors_do_not_poison_the_codebook() -> None:
    quantizer = by_hand().train()
    vectors = VECTORS.clone()
    vectors[0, 0, 0] = torch.nan
    learn(quantizer, vectors)
    assert torch.equal(quantizer.table(), CODES)
    assert torch.equal(quantizer.vq._codebook.cluster_size, torch.ones(1, 3))


def test_state_dict_round_trip_continues_to_the_bit() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(codes=8)
    quantizer.build(4)
    quantizer.initialise(torch.randn(100, 4))
    learn(quantizer, torch.randn(2, 20, 4))
    resumed = EMAQuantizer(codes=8)
    resumed.build(4)
    resumed.load_state_dict(quantizer.state_dict())
    batch = torch.randn(2, 20, 4)
    results = []
    for each in (quantizer, resumed.train()):
        learn(each, batch, seed=1)
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


ARMS = {
    "ema": lambda: EMAQuantizer(codes=64),
    "rotation": lambda: EMAQuantizer(codes=64, rotation=True),
    "factorised": lambda: FactorisedQuantizer(codes=64, code_dim=4),
    "learned": lambda: LearnedQuantizer(codes=64),
    "simvq": lambda: SimVQQuantizer(codes=64),
    "fsq": lambda: FSQQuantizer(levels=(4, 4, 4)),
}


def cloud(count: int = 2000, dim: int = 10) -> torch.Tensor:
    """(count, dim): a few directions hold nearly all of the variance, as after a projection on principal components."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator) * torch.tensor([3.0, 2.0, 1.0, *[0.05] * (dim - 3)])


@pytest.fixture(params=ARMS)
def arm(request: pytest.FixtureRequest) -> CodebookQuantizer:
    torch.manual_seed(0)
    quantizer = ARMS[request.param]()
    quantizer.build(10)
    quantizer.initialise(cloud())
    return quantizer


def error(quantizer: CodebookQuantizer, vectors: torch.Tensor) -> float:
    with torch.no_grad():
        return float((quantizer.eval()(vectors).vectors - vectors).square().mean() / vectors.var(dim=0).mean())


def test_every_arm_starts_from_the_training_vectors(arm: CodebookQuantizer) -> None:
    limit = 0.45 if isinstance(arm, FactorisedQuantizer) else 0.3  # of the variance; a cosine forgets how long a vector is
    assert error(arm, cloud()) < limit


def test_every_arms_table_is_what_stage_two_sees(arm: CodebookQuantizer) -> None:
    found = arm.eval()(cloud(300).unflatten(0, (3, 100)))
    table = arm.table()
    assert table.shape == (arm.num_codes, 10)
    assert table.dtype == torch.float32
    assert not table.requires_grad
    assert found.ids.shape == (3, 100)
    assert found.ids.dtype == torch.int64
    assert found.loss.shape == ()
    torch.testing.assert_close(table[found.ids], found.vectors, atol=1e-5, rtol=1e-5)
    before = {name: tensor.clone() for name, tensor in arm.state_dict().items()}
    arm(cloud(300))
    assert all(torch.equal(before[name], tensor) for name, tensor in arm.state_dict().items())


def test_every_arm_lets_gradients_through_and_learns(arm: CodebookQuantizer) -> None:
    target = cloud() + torch.tensor([4.0, -4.0, 2.0, *[0.0] * 7])  # the vectors have moved since the start
    before = error(arm, target)
    optimizer = torch.optim.Adam(list(arm.parameters()) or [torch.zeros(1, requires_grad=True)], lr=0.01)
    for _ in range(60):
        vectors = target.clone().requires_grad_()
        found = arm.train()(vectors)
        loss = (found.vectors - target).square().mean() + found.loss
        optimizer.zero_grad()
        loss.backward()
        assert vectors.grad is not None
        assert vectors.grad.abs().sum() > 0
        assert torch.isfinite(vectors.grad).all()
        arm.update(vectors.detach()[None], found.ids[None])
        optimizer.step()
    assert error(arm, target) < 0.7 * before


def test_every_arm_survives_bad_vectors_and_autocast(arm: CodebookQuantizer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = arm.eval()(cloud(50))
    assert torch.equal(mixed.ids, arm(cloud(50)).ids)
    before = {name: tensor.clone() for name, tensor in arm.state_dict().items()}
    learn(arm, torch.full((4, 10), float("nan")))
    assert all(torch.equal(before[name], tensor) for name, tensor in arm.state_dict().items())
    with pytest.raises(UsageError, match="bf16-mixed, not bf16-true"):
        arm.bfloat16()(cloud(5))


def test_every_arm_continues_to_the_bit_from_its_state(arm: CodebookQuantizer, request: pytest.FixtureRequest) -> None:
    for part in cloud().split(500)[:2]:
        learn(arm, part)
    copy = ARMS[request.node.callspec.params["arm"]]()
    copy.build(10)
    copy.load_state_dict(arm.state_dict())
    for quantizer in (arm, copy):
        for part in cloud().split(500)[2:]:
            learn(quantizer, part)
    assert torch.equal(arm.table(), copy.table())


def test_rotation_turns_the_gradient_with_the_vector() -> None:
    quantizer = EMAQuantizer(codes=3, rotation=True)
    quantizer.build(2)
    quantizer.vq._codebook.embed.copy_(torch.tensor([[0.0, 2.0], [50.0, 50.0], [-50.0, 50.0]]))
    vectors = torch.tensor([[0.0, 0.0], [2.0, 0.0]])[1:].requires_grad_()
    found = quantizer.train()(vectors).vectors
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0]]))
    found.backward(torch.tensor([[0.0, 1.0]]))  # along the code: turned back by 90 degrees it is along the vector
    torch.testing.assert_close(vectors.grad, torch.tensor([[1.0, 0.0]]), atol=1e-5, rtol=1e-5)


def test_fsq_ids_by_hand() -> None:
    quantizer = FSQQuantizer(levels=(3, 3))
    quantizer.build(2)
    with torch.no_grad():
        quantizer.project_in.weight.copy_(torch.eye(2))
        quantizer.project_in.bias.zero_()
    # tanh squeezes into (-1, 1), which is rounded to -1, 0, 1: numbers 0, 1, 2 of each coordinate, the first one counting fastest
    found = quantizer.eval()(torch.tensor([[-9.0, -9.0], [0.0, -9.0], [9.0, 0.1], [9.0, 9.0]]))
    assert found.ids.tolist() == [0, 1, 5, 8]
    assert quantizer.num_codes == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedQuantizer(codes=1), "codes=1"),
        (lambda: SimVQQuantizer(commitment=-1), "commitment=-1"),
        (lambda: FactorisedQuantizer(code_dim=0), "code_dim=0"),
        (lambda: FSQQuantizer(levels=[8, 2]), r"levels=\[8, 2\]"),
    ],
)
def test_refused_settings_of_the_arms(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
