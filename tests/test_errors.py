"""Errors that users can mend."""

import pytest

from vtlvlm.errors import DataError, UsageError, naming


@pytest.mark.parametrize("kind", [UsageError, DataError])
@pytest.mark.parametrize(("said", "shown"), [("layers 9: too many", "a/b: layers 9: too many"), ("a/b: damaged", "a/b: damaged")])
def test_an_error_names_the_file_once(kind: type[ValueError], said: str, shown: str) -> None:
    with pytest.raises(kind) as error, naming("a/b"):
        raise kind(said)
    assert str(error.value) == shown


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match=r"^defect$"), naming("a/b"):
        raise ValueError("defect")
