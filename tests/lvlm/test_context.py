"""Events in their place in the context, against transformers' own way of placing an image."""

from pathlib import Path

import pytest
import torch
from reasoners import reasoner_of

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.context import embed_context, first_event
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_llava
from vtlvlm.lvlm.prefix import DeepPrompts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("path", ["llava_path", "vicuna_path"])
def test_the_events_stand_where_transformers_scatters_them(
    path: str, dtype: str, classes: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(path)
    reasoner = reasoner_of(folder, DeepPrompts(0), Instruction(), dtype=dtype)
    reasoner.build(classes, 6, 16)
    plain, _ = load_llava(str(folder), dtype=dtype)
    vectors = torch.randn(3, 6, 16)
    with torch.no_grad():
        ids, projected = reasoner.context.expand(3, -1), reasoner.project(vectors)
        table = plain.get_input_embeddings()(ids)
        expected = table.masked_scatter((ids == plain.config.image_token_id)[..., None], projected)
        found = reasoner.embed(vectors)
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, expected)
    assert not torch.equal(found, table)


@pytest.mark.parametrize(("ids", "first"), [([9, 9, 1], 0), ([1, 9, 9], 1), ([1, 2, 9, 9, 3], 2)])
def test_first_event_by_hand(ids: list[int], first: int) -> None:
    assert first_event(torch.tensor(ids), 9, 2) == first


@pytest.mark.parametrize("ids", [[1, 2], [9, 1], [9, 1, 9], [9, 9, 9], [9, 9, 1, 9]])
def test_contexts_with_the_events_in_pieces_are_refused(ids: list[int]) -> None:
    with pytest.raises(UsageError, match=rf"{ids.count(9)} places for 2 events, or not in one piece"):
        first_event(torch.tensor(ids), 9, 2)


def test_another_type_of_events_takes_that_of_the_embeddings(llava_path: Path) -> None:
    """As a projector in float32 does that is trained beside a model in 16 bits."""
    model, _ = load_llava(str(llava_path), dtype="bfloat16")
    projected = torch.randn(2, 3, 32)
    context = torch.tensor([4, 5, 6, 6, 6, 7])
    found = embed_context(model, context, 2, projected)
    assert torch.equal(found[:, 2:5], projected.bfloat16())
    assert torch.equal(found[0, [0, 1, 5]], model.get_input_embeddings()(context[[0, 1, 5]]))
