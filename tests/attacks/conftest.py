"""The stranger's files, made once."""

import pytest
from strangers import Stranger


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Whole files; tests change copies of them."""
    return Stranger(tmp_path_factory.mktemp("stranger"))
